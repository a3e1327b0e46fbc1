"""The process and Ray: the session, pools of workers, how a job ends, telemetry, and the private names of Ray."""
