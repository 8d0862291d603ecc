package cloud_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	cwtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/guardduty"
	gdtypes "github.com/aws/aws-sdk-go-v2/service/guardduty/types"

	"github.com/penstock/penstock/services/demo/cloud"
)

// watched is an endpoint and clients of the real SDK for the APIs that are polled.
type watched struct {
	fixture
	logs    *cloudwatchlogs.Client
	metrics *cloudwatch.Client
	guard   *guardduty.Client
}

func watch(t *testing.T) watched {
	t.Helper()
	f := start(t, cloud.Options{})
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	cfg := aws.Config{
		Region: "us-east-1", BaseEndpoint: aws.String(f.URL()), RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider("AKIATEST", "secret", ""),
		HTTPClient:  &http.Client{Transport: plainBodies{transport}},
	}
	return watched{f, cloudwatchlogs.NewFromConfig(cfg), cloudwatch.NewFromConfig(cfg), guardduty.NewFromConfig(cfg)}
}

func wantCode(t *testing.T, what string, err error, code string) {
	t.Helper()
	if codeOf(err) != code {
		t.Errorf("%s: %v, want %s", what, err, code)
	}
}

// covers: F-16, DEV-109: pages, order, late events, streams without events, limits.
func TestLogsAPI(t *testing.T) {
	w, ctx, now := watch(t), t.Context(), time.Now()
	for i := range 60 {
		if err := w.CreateLogGroup("", fmt.Sprintf("/app/%02d", i)); err != nil {
			t.Fatal(err)
		}
	}
	groups, err := w.logs.DescribeLogGroups(ctx, &cloudwatchlogs.DescribeLogGroupsInput{LogGroupNamePrefix: aws.String("/app/")})
	if err != nil || len(groups.LogGroups) != 50 || groups.NextToken == nil {
		t.Fatalf("first page of groups: %d, %v", len(groups.LogGroups), err)
	}
	groups, err = w.logs.DescribeLogGroups(ctx, &cloudwatchlogs.DescribeLogGroupsInput{LogGroupNamePrefix: aws.String("/app/"), NextToken: groups.NextToken})
	if err != nil || len(groups.LogGroups) != 10 || groups.NextToken != nil {
		t.Fatalf("second page of groups: %d, %v", len(groups.LogGroups), err)
	}
	_, err = w.logs.DescribeLogGroups(ctx, &cloudwatchlogs.DescribeLogGroupsInput{Limit: aws.Int32(51)})
	wantCode(t, "51 groups a page", err, "InvalidParameterException")

	var events []cloud.LogEvent
	for i := range 25 {
		events = append(events, cloud.LogEvent{Time: now.Add(time.Duration(-i) * time.Second), Message: fmt.Sprintf("line %d\nmore", i)})
	}
	events = append(events, cloud.LogEvent{Time: now, Ingested: now.Add(time.Hour), Message: "not yet"})
	if err := errors.Join(w.PutLogEvents("", "/app/00", "a", events...), w.CreateLogStream("", "/app/00", "silent")); err != nil {
		t.Fatal(err)
	}
	streams, err := w.logs.DescribeLogStreams(ctx, &cloudwatchlogs.DescribeLogStreamsInput{LogGroupName: aws.String("/app/00"), OrderBy: "LastEventTime"})
	if err != nil || len(streams.LogStreams) != 2 || streams.LogStreams[0].LastEventTimestamp != nil || *streams.LogStreams[1].LastEventTimestamp != now.UnixMilli() {
		t.Fatalf("streams: %+v, %v", streams, err)
	}

	w.SetLogPaging(cloud.LogPaging{Events: 10, EmptyFirst: 2})
	in := &cloudwatchlogs.FilterLogEventsInput{LogGroupIdentifier: groups.LogGroups[0].Arn, StartTime: aws.Int64(now.Add(-time.Minute).UnixMilli())}
	in.LogGroupIdentifier = aws.String("arn:aws:logs:us-east-1:123456789012:log-group:/app/00")
	var got []string
	sizes := []int{}
	for {
		out, err := w.logs.FilterLogEvents(ctx, in)
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(out.Events))
		for _, e := range out.Events {
			got = append(got, *e.Message)
		}
		if in.NextToken = out.NextToken; in.NextToken == nil {
			break
		}
	}
	if !slices.Equal(sizes, []int{0, 0, 10, 10, 5}) || got[0] != "line 24\nmore" || got[24] != "line 0\nmore" {
		t.Fatalf("pages %v, events %q", sizes, got)
	}
	first, err := w.logs.FilterLogEvents(ctx, in)
	if err != nil {
		t.Fatal(err)
	}
	w.ExpirePageTokens()
	in.NextToken = first.NextToken
	_, err = w.logs.FilterLogEvents(ctx, in)
	wantCode(t, "expired token", err, "InvalidParameterException")
	in.NextToken, in.LogGroupName = nil, aws.String("/app/00")
	_, err = w.logs.FilterLogEvents(ctx, in)
	wantCode(t, "name and identifier", err, "InvalidParameterException")
	_, err = w.logs.FilterLogEvents(ctx, &cloudwatchlogs.FilterLogEventsInput{LogGroupName: aws.String("/none")})
	wantCode(t, "no such group", err, "ResourceNotFoundException")

	w.SetFault(func(op, region, key string) cloud.Fault {
		if op == "FilterLogEvents" && region == "us-east-1" && key == "/app/01" {
			return cloud.Fault{Code: "ThrottlingException"}
		}
		return cloud.Fault{}
	})
	_, err = w.logs.FilterLogEvents(ctx, &cloudwatchlogs.FilterLogEventsInput{LogGroupName: aws.String("/app/01")})
	wantCode(t, "throttled", err, "ThrottlingException")
}

// A page of FilterLogEvents holds 1 MiB at most.
func TestLogPageBytes(t *testing.T) {
	w, now := watch(t), time.Now()
	for i := range 6 {
		if err := w.PutLogEvents("", "g", "s", cloud.LogEvent{Time: now.Add(time.Duration(i)), Message: strings.Repeat("x", 250<<10)}); err != nil {
			t.Fatal(err)
		}
	}
	out, err := w.logs.FilterLogEvents(t.Context(), &cloudwatchlogs.FilterLogEventsInput{LogGroupName: aws.String("g")})
	if err != nil || len(out.Events) != 4 || out.NextToken == nil {
		t.Fatalf("%d events, %v", len(out.Events), err)
	}
}

func dataQuery(id string, m cloud.Metric, period int32, stat string) cwtypes.MetricDataQuery {
	metric := &cwtypes.Metric{Namespace: &m.Namespace, MetricName: &m.Name}
	for k, v := range m.Dimensions {
		metric.Dimensions = append(metric.Dimensions, cwtypes.Dimension{Name: &k, Value: &v})
	}
	return cwtypes.MetricDataQuery{Id: &id, MetricStat: &cwtypes.MetricStat{Metric: metric, Period: &period, Stat: &stat}}
}

// covers: F-17, DEV-16: what is listed, statistics of a period, late points, pages, limits.
func TestMetricsAPI(t *testing.T) {
	w, ctx := watch(t), t.Context()
	end := time.Now().Truncate(time.Hour)
	cpu := cloud.Metric{Namespace: "AWS/EC2", Name: "CPUUtilization", Dimensions: map[string]string{"InstanceId": "i-0"}}
	old := cloud.Metric{Namespace: "AWS/EC2", Name: "DiskReadOps"}
	err := errors.Join(
		w.PutMetricData("", cpu, cloud.Datum{Time: end.Add(-10 * time.Minute), Value: 1.5}, cloud.Datum{Time: end.Add(-10*time.Minute + 30*time.Second), Value: 5},
			cloud.Datum{Time: end.Add(-9 * time.Minute), Value: 7}, cloud.Datum{Time: end.Add(-8 * time.Minute), Value: 9, Published: end.Add(24 * time.Hour)}),
		w.PutMetricData("", old, cloud.Datum{Time: end.Add(-5 * time.Hour), Value: 1}),
		w.PutMetricData("", cloud.Metric{Namespace: "AWS/S3", Name: "Gone"}, cloud.Datum{Time: end.Add(-15 * 24 * time.Hour), Value: 1}),
	)
	if err != nil {
		t.Fatal(err)
	}
	list := func(in cloudwatch.ListMetricsInput) (names []string) {
		out, err := w.metrics.ListMetrics(ctx, &in)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range out.Metrics {
			names = append(names, *m.MetricName)
		}
		return names
	}
	if got := list(cloudwatch.ListMetricsInput{}); !slices.Equal(got, []string{"CPUUtilization", "DiskReadOps"}) {
		t.Errorf("all metrics: %v", got)
	}
	if got := list(cloudwatch.ListMetricsInput{Namespace: aws.String("AWS/EC2"), RecentlyActive: cwtypes.RecentlyActivePt3h}); !slices.Equal(got, []string{"CPUUtilization"}) {
		t.Errorf("active metrics: %v", got)
	}
	in := &cloudwatch.GetMetricDataInput{
		StartTime: aws.Time(end.Add(-10 * time.Minute)), EndTime: &end, ScanBy: cwtypes.ScanByTimestampAscending,
		MetricDataQueries: []cwtypes.MetricDataQuery{dataQuery("a", cpu, 60, "Average"), dataQuery("b", cpu, 300, "Maximum"), dataQuery("c", cpu, 60, "p50")},
	}
	out, err := w.metrics.GetMetricData(ctx, in)
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, r := range out.MetricDataResults {
		got += fmt.Sprint(*r.Id, r.StatusCode, r.Values)
		if !r.Timestamps[0].Equal(end.Add(-10 * time.Minute)) {
			t.Errorf("query %s begins at %v", *r.Id, r.Timestamps[0])
		}
	}
	if want := "aComplete[3.25 7]bComplete[7]cComplete[1.5 7]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	in.MaxDatapoints = aws.Int32(3)
	out, err = w.metrics.GetMetricData(ctx, in)
	if err != nil || out.NextToken == nil || out.MetricDataResults[2].StatusCode != cwtypes.StatusCodePartialData {
		t.Fatalf("first page: %+v, %v", out, err)
	}
	in.NextToken = out.NextToken
	if out, err = w.metrics.GetMetricData(ctx, in); err != nil || out.NextToken != nil || len(out.MetricDataResults[2].Values) != 2 {
		t.Fatalf("second page: %+v, %v", out, err)
	}
	w.ExpirePageTokens()
	_, err = w.metrics.GetMetricData(ctx, in)
	wantCode(t, "expired token", err, "InvalidNextToken")
	in.NextToken, in.MetricDataQueries[1].Id = nil, aws.String("a")
	_, err = w.metrics.GetMetricData(ctx, in)
	wantCode(t, "an id twice", err, "ValidationError")
	in.MetricDataQueries = []cwtypes.MetricDataQuery{dataQuery("a", cpu, 61, "Sum")}
	_, err = w.metrics.GetMetricData(ctx, in)
	wantCode(t, "period of 61 s", err, "ValidationError")
	w.SetFault(func(string, string, string) cloud.Fault { return cloud.Fault{Status: 400, Code: "Throttling"} })
	_, err = w.metrics.ListMetrics(ctx, &cloudwatch.ListMetricsInput{})
	wantCode(t, "throttled", err, "Throttling")
}

// covers: F-13: criteria, sort, pages by position, the finding as it is stored.
func TestGuardDutyAPI(t *testing.T) {
	w, ctx := watch(t), t.Context()
	w.CreateDetector("", "d0")
	put := func(id string, minute int) {
		doc := fmt.Sprintf(`{"schemaVersion":"2.0","id":%q,"severity":2.50,"unknown":{"a":1e3},"updatedAt":"2026-01-05T10:%02d:00.000Z","service":{"archived":false}}`, id, minute)
		if err := w.PutFinding("", "d0", []byte(doc)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 55 {
		put(fmt.Sprintf("f%02d", i), i)
	}
	detectors, err := w.guard.ListDetectors(ctx, &guardduty.ListDetectorsInput{})
	if err != nil || !slices.Equal(detectors.DetectorIds, []string{"d0"}) {
		t.Fatalf("detectors: %+v, %v", detectors, err)
	}
	since := time.Date(2026, 1, 5, 10, 1, 0, 0, time.UTC).UnixMilli()
	in := &guardduty.ListFindingsInput{
		DetectorId: aws.String("d0"), SortCriteria: &gdtypes.SortCriteria{AttributeName: aws.String("updatedAt"), OrderBy: gdtypes.OrderByAsc},
		FindingCriteria: &gdtypes.FindingCriteria{Criterion: map[string]gdtypes.Condition{"updatedAt": {GreaterThanOrEqual: &since}}},
	}
	out, err := w.guard.ListFindings(ctx, in)
	if err != nil || len(out.FindingIds) != 50 || out.FindingIds[0] != "f01" {
		t.Fatalf("first page: %+v, %v", out, err)
	}
	put("f03", 59) // moves to the end: one finding slips into the first page, unseen
	in.NextToken = out.NextToken
	out, err = w.guard.ListFindings(ctx, in)
	if err != nil || !slices.Equal(out.FindingIds, []string{"f52", "f53", "f54", "f03"}) || aws.ToString(out.NextToken) != "" {
		t.Fatalf("second page: %+v, %v", out, err)
	}
	w.ExpirePageTokens()
	_, err = w.guard.ListFindings(ctx, in)
	wantCode(t, "expired token", err, "BadRequestException")
	got, err := w.guard.GetFindings(ctx, &guardduty.GetFindingsInput{DetectorId: aws.String("d0"), FindingIds: []string{"f03", "none"}})
	if err != nil || len(got.Findings) != 1 || *got.Findings[0].UpdatedAt != "2026-01-05T10:59:00.000Z" {
		t.Fatalf("findings: %+v, %v", got, err)
	}
	_, err = w.guard.GetFindings(ctx, &guardduty.GetFindingsInput{DetectorId: aws.String("d0"), FindingIds: make([]string, 51)})
	wantCode(t, "51 findings", err, "BadRequestException")
	_, err = w.guard.ListFindings(ctx, &guardduty.ListFindingsInput{DetectorId: aws.String("other")})
	wantCode(t, "another detector", err, "BadRequestException")
	w.SetFault(func(string, string, string) cloud.Fault {
		return cloud.Fault{Status: 403, Code: "AccessDeniedException"}
	})
	_, err = w.guard.ListDetectors(ctx, &guardduty.ListDetectorsInput{})
	wantCode(t, "denied", err, "AccessDeniedException")
}
