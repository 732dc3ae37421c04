import csv
import io

from broker_server.report.spreadsheet import spreadsheet


def test_a_line_for_each_round(make_report):
    report = make_report()
    head, *lines = csv.reader(io.StringIO(spreadsheet(report)))
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    assert [row["round"] for row in rows] == ["1", "2", "4", "5"]
    assert (rows[0]["train_loss.a"], rows[0]["train_loss.b"], rows[0]["val_loss.a"]) == ("2.0", "4.0", "")
    assert (rows[2]["group"], rows[2]["train_loss.b"], rows[2]["energy_j"]) == ("a", "", "")
    assert (rows[0]["bytes_up"], rows[0]["bytes_down"]) == (str(2**20), "")


def test_a_name_is_no_formula(make_report, make_round):
    text = spreadsheet(make_report(rounds=[make_round(1, "=1+1", "a", {"a": 1.0})]))
    assert "'=1+1" in text
