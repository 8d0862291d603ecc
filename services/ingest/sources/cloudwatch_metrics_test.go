package sources

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"

	"github.com/penstock/penstock/services/demo/cloud"
)

func (w *watched) metricsConfig(namespaces ...string) CloudWatchMetricsConfig {
	cfg := defaultCloudWatchMetrics()
	cfg.PollConfig = fastPoll()
	cfg.RequestsPerSecond = 500
	cfg.MetricNamespaces, cfg.AWS = namespaces, w.aws()
	cfg.Delay, cfg.Statistics = 0, []string{"Sum"}
	cfg.StartTime = w.now.Add(-30 * time.Minute).Format(time.RFC3339)
	return cfg
}

// measure puts n series of a namespace, with a point in each of some minutes from
// half an hour ago on; every point comes to one event.
func (w *watched) measure(t testing.TB, region, namespace string, n, minutes int) (want []string) {
	t.Helper()
	from := w.now.Add(-30 * time.Minute).Truncate(time.Minute).Add(time.Minute)
	for i := range n {
		m := cloud.Metric{Namespace: namespace, Name: "Load", Dimensions: map[string]string{"Host": fmt.Sprintf("h%04d", i), "A": `"quoted"`}}
		for j := range minutes {
			at := from.Add(time.Duration(j) * time.Minute)
			if err := w.PutMetricData(region, m, cloud.Datum{Time: at, Value: float64(i) + float64(j)/4}); err != nil {
				t.Fatal(err)
			}
			want = append(want, fmt.Sprintf(`{"namespace":%q,"metric":"Load","dimensions":{"A":"\"quoted\"","Host":"h%04d"},"stat":"Sum","period":60,"value":%g,"timestamp":%q}`,
				namespace, i, float64(i)+float64(j)/4, at.Format(time.RFC3339)))
		}
	}
	return want
}

func (w *watched) untilRecords(t testing.TB, want []string) *stored {
	t.Helper()
	want = slices.Clone(want)
	slices.Sort(want)
	var got *stored
	eventually(t, "all records are stored", func() bool {
		got = w.server.stored(t)
		return slices.Equal(got.distinct(), want)
	})
	return got
}

// covers: SYS-8, DEV-16, DEV-17, DEV-77, DEV-101, DEV-106, F-17: an event for each
// data point of more series than one call takes, over pages; all namespaces of two
// regions, and one that is named.
func TestMetricsPoints(t *testing.T) {
	w := newWatched(t)
	w.SetMetricPaging(700)
	want := append(w.measure(t, "us-east-1", "Shop", 1203, 2), w.measure(t, "us-east-1", "AWS/EC2", 5, 20)...)
	_, stop := w.run(t, "a", "cloudwatch_metrics", w.metricsConfig("AWS/EC2", "Shop"), nil)
	got := w.untilRecords(t, want)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if len(got.records) != len(want) {
		t.Errorf("%d records for %d points", len(got.records), len(want))
	}
	for _, o := range got.origins {
		if o.GetApi() != "cloudwatch:GetMetricData" || o.GetResource() != "Shop" && o.GetResource() != "AWS/EC2" || o.GetRegion() != "us-east-1" {
			t.Errorf("origin %v", o)
		}
	}
	if n := w.Calls("ListMetrics"); n != 4 {
		t.Errorf("%d calls of ListMetrics, want 4 for 3 pages and 1", n)
	}
	w.measure(t, "eu-west-1", "Shop", 2, 3)
	all := w.metricsConfig("*")
	all.Regions = []string{"us-east-1", "eu-west-1"}
	w.run(t, "b", "cloudwatch_metrics", all, func(d *Deps) { d.Name = "all" })
	eventually(t, "both regions are stored", func() bool {
		n := 0
		for _, p := range w.server.stored(t).report.Pulls {
			if p.Source == "all" {
				n += int(p.Records)
			}
		}
		return n == len(want)+6
	})
}

// covers: DEV-105, DEV-161, F-17, LIM-16: killed again and again, throttled, with
// page tokens that expire; and what was missed while it was down is caught up.
func TestMetricsTrouble(t *testing.T) {
	w := newWatched(t)
	w.SetMetricPaging(100)
	want := w.measure(t, "", "Shop", 60, 10)
	var n atomic.Int64
	w.SetFault(func(op, _, _ string) cloud.Fault {
		if op != "GetMetricData" {
			return cloud.Fault{}
		}
		switch n.Add(1) {
		case 3:
			w.ExpirePageTokens()
		case 5:
			return cloud.Fault{Status: 400, Code: "Throttling"}
		case 7:
			return cloud.Fault{Cut: 300}
		case 9:
			return cloud.Fault{Status: 500, Code: "InternalServiceFault"}
		}
		return cloud.Fault{}
	})
	cfg := w.metricsConfig("Shop")
	_, stop := w.run(t, "a", "cloudwatch_metrics", cfg, frailOutboxes(10))
	got := w.untilRecords(t, want)
	if extra := len(got.records) - len(want); extra > 400 {
		t.Errorf("%d points were stored again", extra)
	}
	at, err := w.server.connect(t, "setup").Cursor(t.Context(), "poll", "us-east-1:Shop")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cursor is moved", func() bool { return at.Load(t.Context()) == nil && at.Value() != nil })
	if err := stop(); err != nil {
		t.Error(err)
	}
	// The cursor is put back, as if it had been down for two hours.
	if err := at.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	var cur metricCursor
	if err := json.Unmarshal(at.Value(), &cur); err != nil || cur.Read%60 != 0 || time.Since(time.Unix(cur.Read, 0)) > 3*time.Minute {
		t.Errorf("cursor %s, %v", at.Value(), err)
	}
	down := w.now.Add(-2 * time.Hour).Truncate(time.Minute)
	if err := at.Set(t.Context(), fmt.Appendf(nil, `{"read":%d}`, down.Unix())); err != nil {
		t.Fatal(err)
	}
	missed := cloud.Metric{Namespace: "Shop", Name: "Missed"}
	if err := w.PutMetricData("", missed, cloud.Datum{Time: down.Add(5 * time.Minute), Value: 1e21}); err != nil {
		t.Fatal(err)
	}
	w.run(t, "b", "cloudwatch_metrics", cfg, nil)
	w.untilRecords(t, append(want, fmt.Sprintf(`{"namespace":"Shop","metric":"Missed","dimensions":{},"stat":"Sum","period":60,"value":1e+21,"timestamp":%q}`,
		down.Add(5*time.Minute).Format(time.RFC3339))))
}

// covers: DEV-103, F-17: a point that comes late is found by the overlap, one whose
// value has changed since is a new revision, and the others are not stored again.
func TestMetricsLatePoints(t *testing.T) {
	w := newWatched(t)
	cfg := w.metricsConfig("Fine")
	cfg.RequestPeriod, cfg.Overlap, cfg.StartTime = 1, 5*time.Minute, w.now.Add(-time.Minute).Format(time.RFC3339)
	m := cloud.Metric{Namespace: "Fine", Name: "X"}
	at := w.now.Add(-20 * time.Second).Truncate(time.Second)
	if err := w.PutMetricData("", m, cloud.Datum{Time: at, Value: 1}, cloud.Datum{Time: at.Add(5 * time.Second), Value: 2}); err != nil {
		t.Fatal(err)
	}
	w.run(t, "a", "cloudwatch_metrics", cfg, nil)
	point := func(second, value int, revision string) string {
		return fmt.Sprintf(`{"namespace":"Fine","metric":"X","dimensions":{},"stat":"Sum","period":1,"value":%d,"timestamp":%q%s}`,
			value, at.Add(time.Duration(second)*time.Second).Format(time.RFC3339), revision)
	}
	want := []string{point(0, 1, ""), point(5, 2, "")}
	w.untilRecords(t, want)
	if err := w.PutMetricData("", m, cloud.Datum{Time: at.Add(2 * time.Second), Value: 9}, cloud.Datum{Time: at, Value: 5}); err != nil {
		t.Fatal(err)
	}
	got := w.untilRecords(t, append(want, point(2, 9, ""), point(0, 6, `,"revision":1`)))
	if len(got.records) != 4 {
		t.Errorf("%d records, want 4: %q", len(got.records), got.records)
	}
}

// covers: F-17, DEV-161: a limit on the metrics that has a name, and what may not be read.
func TestMetricsRefused(t *testing.T) {
	w := newWatched(t)
	w.measure(t, "", "Shop", 12, 2)
	cfg := w.metricsConfig("Shop")
	cfg.MaxMetrics = 10
	s, _ := w.run(t, "a", "cloudwatch_metrics", cfg, nil)
	eventually(t, "the limit is named", func() bool { return errors.Is(s.Health(), errTooManyMetrics) })
	if got := w.server.stored(t).distinct(); len(got) != 20 {
		t.Errorf("%d points of the first ten metrics, want 20", len(got))
	}

	r := &metricReader{cloudWatchMetrics: &cloudWatchMetrics{cfg: cfg}}
	batch := []metricQuery{{series: &metricSeries{metric: types.Metric{MetricName: aws.String("X")}}, stat: "Sum"}}
	for _, tc := range []struct {
		result types.MetricDataResult
		err    error
	}{
		{types.MetricDataResult{Id: aws.String("q0"), StatusCode: types.StatusCodeInternalError}, errMetricFailed},
		{types.MetricDataResult{Id: aws.String("q9"), StatusCode: types.StatusCodeComplete}, errMetricFailed},
		{types.MetricDataResult{Id: aws.String("q0"), Timestamps: make([]time.Time, 1)}, errMetricFailed},
	} {
		if err := r.judge(batch, &tc.result); !errors.Is(err, tc.err) {
			t.Errorf("%+v: %v, want %v", tc.result, err, tc.err)
		}
	}
	if err := r.judge(batch, &types.MetricDataResult{Id: aws.String("q0"), StatusCode: types.StatusCodeForbidden}); err != nil || r.forbidden != "X" {
		t.Errorf("forbidden %q, %v", r.forbidden, err)
	}
}

// covers: DEV-17, DEV-102, DEV-103, DEV-105, F-17: windows are aligned, bounded and
// without holes; what is no longer kept is told.
func TestMetricWindows(t *testing.T) {
	const now = 1767600036 // 08:00:36
	minutes := func(n int64) int64 { return 1767600000 + n*60 }
	tests := []struct {
		name           string
		read, period   int64
		delay, overlap time.Duration
		want           []metricWindow
		lost           metricWindow
	}{
		{"nothing new", minutes(0), 60, 0, 5 * time.Minute, nil, metricWindow{}},
		{"the last minute", minutes(-1), 60, 0, 0, []metricWindow{{minutes(-1), minutes(-1), minutes(0)}}, metricWindow{}},
		{"held back", minutes(-3), 60, 2 * time.Minute, 0, []metricWindow{{minutes(-3), minutes(-3), minutes(-2)}}, metricWindow{}},
		{"overlap", minutes(-1), 60, 0, 3 * time.Minute, []metricWindow{{minutes(-4), minutes(-1), minutes(0)}}, metricWindow{}},
		{"not aligned", minutes(-1) + 17, 60, 0, 90 * time.Second, []metricWindow{{minutes(-3), minutes(-1), minutes(0)}}, metricWindow{}},
		{"five minutes", minutes(-5), 300, 0, 0, []metricWindow{{minutes(-5), minutes(-5), minutes(0)}}, metricWindow{}},
		{"caught up in two", minutes(-250), 60, 0, 0, []metricWindow{{minutes(-250), minutes(-250), minutes(-50)}, {minutes(-50), minutes(-50), minutes(0)}}, metricWindow{}},
		{"an overlap that is too long", minutes(-1), 60, 0, 24 * time.Hour, []metricWindow{{minutes(-200), minutes(-1), minutes(0)}}, metricWindow{}},
		{
			"seconds are kept for three hours", now - 4*3600, 1, 0, 0, nil,
			metricWindow{now - 4*3600, now - 4*3600, now - 3*3600 + 1},
		},
	}
	for _, tc := range tests {
		windows, lost := metricWindows(tc.read, now, tc.period, tc.delay, tc.overlap)
		if lost != tc.lost || tc.want != nil && !slices.Equal(windows, tc.want) || tc.name == "nothing new" && windows != nil {
			t.Errorf("%s: %v lost %v, want %v lost %v", tc.name, windows, lost, tc.want, tc.lost)
		}
		for i, w := range windows {
			if w.from%tc.period != 0 || w.to%tc.period != 0 || w.from >= w.to || w.to-w.from > windowPeriods*tc.period || i > 0 && w.fresh != windows[i-1].to {
				t.Errorf("%s: window %d is %v of %v", tc.name, i, w, windows)
			}
		}
	}
}

// covers: DEV-77, DEV-78, DEV-149, DEV-154, DEV-160: the same rule and the same words.
func TestMetricsValidate(t *testing.T) {
	for s, want := range map[int]bool{1: true, 5: true, 10: true, 30: true, 60: true, 120: true, 86_400: true, 0: false, -60: false, 2: false, 20: false, 61: false, 90: false, 86_460: false} {
		if goodPeriod(s) != want {
			t.Errorf("period %d: %v", s, !want)
		}
	}
	err := CloudWatchMetricsConfig{Statistics: []string{"Mean"}, MetricNamespaces: []string{"*", "AWS/*", "*"}, RequestPeriod: 7, MaxMetrics: -1}.Validate()
	if err == nil {
		t.Fatal("no problem was found")
	}
	for _, text := range []string{
		"metric_namespaces[1]", "metric_namespaces[2]", "metric_namespaces:", "statistics[0]", "max_metrics", "discovery", "period",
		`"request_period_in_seconds" must have one of the following values: 1, 5, 10, 30, 60, or any multiple of 60`,
	} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("nothing about %s in %v", text, err)
		}
	}
	ok := defaultCloudWatchMetrics()
	ok.MetricNamespaces, ok.Statistics = []string{"AWS/EC2"}, []string{"Average", "p99", "p99.9", "TM(10%:90%)", "IQM", "tm95"}
	if err := ok.Validate(); err != nil {
		t.Error(err)
	}
}
