"""An Airflow 3 DAG: every night hand the job to the Ray cluster, follow it, and tell what came out.

Install: copy this file into Airflow's dags folder. The machine of Airflow's worker needs this project
(pip install 'gpt2-pipeline[cluster]'), its folder, and nothing of the model: the run belongs to the cluster.
Try:     airflow dags test pipeline_nightly 2026-01-01
"""

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

# CHANGE: the project's folder on Airflow's worker, the cluster's job server, the buckets.
PROJECT = "/srv/pipeline"
ADDRESS = "http://ray-head:8265"
ROWS = "s3://example-bucket/reviews"
# {{ ds }} is the day that the run is for, not the one on which it happens: a back-fill finds its own folder.
SCORED = "s3://example-bucket/scored/{{ ds }}"

with DAG(
    dag_id="pipeline_nightly",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,  # True: also the days since start_date
    max_active_runs=1,
    # A try while the run of an earlier one still goes is refused (exit 1); the next one finds it finished.
    default_args={"retries": 5, "retry_delay": timedelta(minutes=10)},
):
    # Exit 3 (finished, some rows carry an error) is a success here.
    # Only what is new each night, into one folder: SCORED without {{ ds }}, and output.mode=incremental
    score = BashOperator(
        task_id="score",
        cwd=PROJECT,
        bash_command=(
            f"pipeline submit jobs/score.yaml model=gpt2 cluster=ray input.parquet={ROWS} output.path={SCORED} "
            f"--address {ADDRESS} || test $? -eq 3"
        ),
    )
    told = BashOperator(task_id="status", bash_command=f"pipeline status {SCORED}")
    score >> told
