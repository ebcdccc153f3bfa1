"""The worker: runs the jobs that the server queues. TensorFlow loads only inside a job's child."""
