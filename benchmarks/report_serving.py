"""Reports of the benchmarks of a server: its load, and its growth."""

from __future__ import annotations

from benchmarks.plot import draw_bars
from benchmarks.report_parts import Row, megabytes, seconds, table
from benchmarks.results import Results

__all__ = ["GROWTH_HEAD", "growth_cells", "report_growth", "report_serving"]


def report_serving(results: Results) -> tuple[str, str]:
    facts = results.facts
    lines = [
        [
            str(row["clients"]),
            str(row["done"]),
            f"{row['requests_per_s']:.2f}",
            f"{row['in_process_requests_per_s']:.2f}",
            f"{row['requests_per_s'] / row['in_process_requests_per_s']:.0%}",
            *(
                f"{seconds(row[f'{name}_p50_s'])}; {seconds(row[f'{name}_p99_s'])}"
                for name in ("healthz", "status")
            ),
            *(" to ".join(map(megabytes, row[f"{name}_bytes"])) for name in ("server", "worker")),
            str(len(row["failures"])),
        ]
        for row in results.rows
    ]
    head = [
        "clients", "jobs done", "jobs/s", "in process", "share of that", "/healthz, p50; p99", "a job, p50; p99",
        "memory of the server", "of its worker", "failures",
    ]  # fmt: skip
    note = (
        f"At most {facts['jobs']} mixed edits of {facts['bundle']} or {facts['seconds']:g} s a row; "
        f"{facts['slots']} at once on the worker, and as many in process, but no more than clients."
    )
    if "memory" in facts:
        memory = facts["memory"]
        sizes = (
            f"{name}: {', '.join(megabytes(size) for size in memory[f'{name}_bytes'])}"
            for name in ("server", "worker")
        )
        note += (
            f"\n\nResident memory after each tenth of {memory['jobs']} jobs of 1 frame and 1 step by 4 clients: "
            f"{'; '.join(sizes)}; {len(memory['failures'])} failures."
        )
    bars = {
        f"{row['clients']} clients": {
            "server": row["requests_per_s"],
            "in process": row["in_process_requests_per_s"],
        }
        for row in results.rows
    }
    return f"{note}\n\n{table(head, lines)}", draw_bars("Throughput of a server", bars, "jobs/s")


GROWTH_HEAD = (
    "work", "GPUs", "jobs an hour", "wait, p50", "p99", "share of the GPUs in use where p99 is a job's time",
    "GPU time paid a job there", "server, cores", "store, share of its time",
)  # fmt: skip


def growth_cells(row: Row) -> list[str]:
    """The cells of a row of the growth under GROWTH_HEAD."""
    return [
        row["work"],
        f"{row['gpus']:,}",
        f"{row['jobs_per_s'] * 3600:,.0f}",
        seconds(row["wait_p50_s"]),
        seconds(row["wait_p99_s"]),
        f"{row['affordable_utilization']:.0%}",
        seconds(row["paid_s_per_job"]),
        f"{row['server_cpu_cores']:.2g}",
        f"{row['store_share']:.1%}",
    ]


def report_growth(results: Results) -> tuple[str, str]:
    """How long jobs wait and what they cost, by the number of GPUs, and what one server can do of it."""
    facts = results.facts
    head = [*GROWTH_HEAD, "GPU time lost between jobs", "media, Gbit/s", "media, TB a day"]
    lines = [
        [
            *growth_cells(row),
            f"{row['gpu_share']:.2%}",
            f"{row['network_bytes_per_s'] * 8 / 1e9:.2g}",
            f"{row['disk_bytes_a_day'] / 1e12:.2g}",
        ]
        for row in results.rows
    ]
    ms = {
        name: f"{value * 1e3:.2g} ms"
        for name, value in facts.items()
        if name.startswith(("server", "store", "gap"))
    }
    note = (
        f"Poisson arrivals at {facts['utilization']:.0%} of what the GPUs can do, first come, first served. Measured "
        f"here: {ms['server_cpu_s_per_job']} of the server's CPU a job, {ms['server_cpu_s_per_poll']} a look at a job "
        f"({facts['polls_per_s']:g} a second for each job under way), {ms['store_s_per_job']} of the store a job, "
        f"{ms['gap_s']} from a job's end to the next one's begin on a device. "
        f"Media: {facts['media_bytes_per_job'] / 1e6:g} MB a job."
    )
    bars = {f"{row['work']}, {row['gpus']} GPUs": {"cores": row["server_cpu_cores"]} for row in results.rows}
    return f"{note}\n\n{table(head, lines)}", draw_bars("CPU of the one server", bars, "cores")
