"""cluster/aws/notification.json tells of each run that ends, once, and then all else of the run is there."""

import json
from urllib.parse import unquote_plus

import boto3

from tests.conftest import ROOT
from tests.jobs.bench import Bench, fill, save_model
from tests.servers.proxy import Proxy

RULE = json.loads((ROOT / "cluster" / "aws" / "notification.json").read_text())


def test_a_queue_is_told_of_each_run_once_all_that_it_leaves_is_there(s3: str, proxy: Proxy) -> None:
    (queue,) = RULE["QueueConfigurations"]
    sqs, client = boto3.client("sqs", endpoint_url=s3), boto3.client("s3", endpoint_url=s3)
    url = sqs.create_queue(QueueName=queue["QueueArn"].split(":")[-1])["QueueUrl"]
    for name in ("example-images", "example-results"):
        client.create_bucket(Bucket=name)
    client.put_bucket_notification_configuration(Bucket="example-results", NotificationConfiguration=RULE)
    bench = Bench("s3://example-results")
    bench.images = "s3://example-images/told"
    save_model(bench.model)
    fill(bench.images, ["a.png", "summary.json"])
    sqs.purge_queue(QueueUrl=url)  # of the event by which S3 tries it
    try:
        bench.run(force=True, include=("*.json", "*.png"))
    finally:
        client.put_bucket_notification_configuration(Bucket="example-results", NotificationConfiguration={})
    (message,) = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
    (event,) = json.loads(message["Body"])["Records"]
    assert bench.summary["counts"] == {"done": 2}
    assert unquote_plus(event["s3"]["object"]["key"]) == f"masks/_segment/runs/{bench.summary['run']}/summary.json"
    assert [path for verb, path in proxy.requests if verb == "PUT"][-1].endswith("/summary.json")
