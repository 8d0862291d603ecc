package cloud

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/smithy-go/encoding/cbor"
)

// Limits of CloudWatch. Source: Amazon CloudWatch API Reference, ListMetrics and
// GetMetricData; formats F-17.
const (
	maxMetricList    = 500
	maxMetricQueries = 500
	maxDatapoints    = 100_800
	maxDimensions    = 30
	listedFor        = 14 * 24 * time.Hour
	activeFor        = 3 * time.Hour
	fineFor          = 3 * time.Hour
	minuteFor        = 15 * 24 * time.Hour
	fiveMinutesFor   = 63 * 24 * time.Hour
)

func init() { registerAPI(func(*Cloud) api { return &metricsAPI{} }) }

// Metric names a time series.
type Metric struct {
	Namespace, Name string
	Dimensions      map[string]string
}

// Datum is one value that was published for a metric.
type Datum struct {
	Time  time.Time
	Value float64
	// Published is from when on it can be seen. Zero is now; a time long after
	// Time makes a late point.
	Published time.Time
}

// metricsAPI is the CloudWatch metrics of all regions.
type metricsAPI struct {
	mu     sync.Mutex
	series map[string]map[string]*series // region → key
	tokens pageTokens
	most   int // data points of a page, 0 for those asked for
}

type series struct {
	Metric
	names []string // of the dimensions, sorted
	data  []Datum  // by time
}

func (m Metric) key() (string, []string) {
	var names []string
	for name := range m.Dimensions {
		names = append(names, name)
	}
	slices.Sort(names)
	var b strings.Builder
	fmt.Fprintf(&b, "%s\x00%s", m.Namespace, m.Name)
	for _, name := range names {
		fmt.Fprintf(&b, "\x00%s=%s", name, m.Dimensions[name])
	}
	return b.String(), names
}

// PutMetricData adds values, in any order, to a metric that is made if it is not
// there. Region "" is that of the Cloud. It fails with demo.refused.
func (c *Cloud) PutMetricData(region string, m Metric, data ...Datum) error {
	if m.Namespace == "" || m.Name == "" || len(m.Dimensions) > maxDimensions {
		return errRefused.New(nil, "put data of metric %q into namespace %q", m.Name, m.Namespace)
	}
	s := apiOf[*metricsAPI](c)
	s.mu.Lock()
	defer s.mu.Unlock()
	region = c.regionOr(region)
	if s.series == nil {
		s.series = map[string]map[string]*series{}
	}
	if s.series[region] == nil {
		s.series[region] = map[string]*series{}
	}
	key, names := m.key()
	t := s.series[region][key]
	if t == nil {
		t = &series{Metric: m, names: names}
		s.series[region][key] = t
	}
	for _, d := range data {
		if d.Published.IsZero() {
			d.Published = time.Now()
		}
		t.data = append(t.data, d)
	}
	slices.SortStableFunc(t.data, func(a, b Datum) int { return a.Time.Compare(b.Time) })
	c.changed.fire()
	return nil
}

// SetMetricPaging bounds the data points in a page of GetMetricData; 0 is as the
// request asks.
func (c *Cloud) SetMetricPaging(points int) {
	s := apiOf[*metricsAPI](c)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.most = points
}

// last is the time of the newest visible value.
func (t *series) last(now time.Time) (time.Time, bool) {
	for i := len(t.data) - 1; i >= 0; i-- {
		if !t.data[i].Published.After(now) {
			return t.data[i].Time, true
		}
	}
	return time.Time{}, false
}

func metricError(code, format string, args ...any) *apiError {
	e := &apiError{status: http.StatusBadRequest, code: code, message: fmt.Sprintf(format, args...)}
	// The older protocol's words, which the SDK prefers.
	switch code {
	case "InvalidParameterValueException", "InvalidParameterCombinationException":
		e.query = strings.TrimSuffix(code, "Exception")
	case "MissingRequiredParameterException":
		e.query = "MissingParameter"
	}
	return e
}

// The path and headers of Smithy RPC v2 CBOR, which the SDK speaks to CloudWatch.
// Source: smithy.io, Smithy RPC v2 CBOR protocol.
const (
	metricsPath = "/service/GraniteServiceVersion20100801/operation/"
	cborType    = "application/cbor"
)

// operation implements api.
func (s *metricsAPI) operation(r *http.Request) string {
	op, _ := strings.CutPrefix(r.URL.Path, metricsPath)
	if op == r.URL.Path || r.Method != http.MethodPost || r.Header.Get("Smithy-Protocol") != "rpc-v2-cbor" {
		return ""
	}
	return op
}

func (s *metricsAPI) scope() string { return "monitoring" }

// about implements apiNamer.
func (s *metricsAPI) about(call *apiCall) string {
	v, _ := cbor.Decode(call.body) // serve reports what is wrong with it
	in, _ := v.(cbor.Map)
	namespace, _ := in["Namespace"].(cbor.String)
	return string(namespace)
}

// serve implements api. Unknown fields are refused, so that a client cannot rely
// on them.
func (s *metricsAPI) serve(_ context.Context, call *apiCall) (any, *apiError) {
	v, err := cbor.Decode(call.body)
	in, ok := v.(cbor.Map)
	if err != nil || !ok || call.http.Header.Get("Content-Type") != cborType {
		return nil, metricError("SerializationException", "The request body is not a CBOR map.")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := fields{in: in}
	var out cbor.Map
	var e *apiError
	switch call.op {
	case "ListMetrics":
		out, e = s.list(call.region, &r)
	case "GetMetricData":
		out, e = s.get(call.region, &r)
	default:
		e = &apiError{status: http.StatusNotFound, code: "UnknownOperationException", message: "This endpoint does not implement " + call.op + "."}
	}
	if e = cmp.Or(r.bad, e); e != nil {
		return nil, e
	}
	return rawAnswer{contentType: cborType, body: cbor.Encode(out)}, nil
}

// refuse implements apiErrors.
func (s *metricsAPI) refuse(w http.ResponseWriter, _ *http.Request, e *apiError) {
	who := "Sender"
	if e.status >= http.StatusInternalServerError {
		who = "Receiver"
	}
	h := w.Header()
	h.Set("Content-Type", cborType)
	h.Set("Smithy-Protocol", "rpc-v2-cbor")
	h.Set("X-Amzn-Query-Error", cmp.Or(e.query, e.code)+";"+who)
	w.WriteHeader(e.status)
	_, _ = w.Write(cbor.Encode(cbor.Map{
		"__type": cbor.String("com.amazonaws.cloudwatch#" + e.code), "message": cbor.String(e.message),
	}))
}

// fields reads members of a CBOR map and remembers the first that is wrong.
type fields struct {
	in  cbor.Map
	bad *apiError
}

func (f *fields) refuse(name string) {
	if f.bad == nil {
		f.bad = metricError("SerializationException", "member %s has another type", name)
	}
}

func (f *fields) text(name string) string {
	v, ok := f.in[name].(cbor.String)
	if f.in[name] != nil && !ok {
		f.refuse(name)
	}
	return string(v)
}

func (f *fields) number(name string) (int, bool) {
	v, ok := f.in[name]
	if !ok {
		return 0, false
	}
	n, err := cbor.AsInt32(v)
	if err != nil {
		f.refuse(name)
	}
	return int(n), true
}

func (f *fields) time(name string) (t time.Time) {
	if v, ok := f.in[name]; ok {
		var err error
		if t, err = cbor.AsTime(v); err != nil {
			f.refuse(name)
		}
	}
	return t
}

func (f *fields) list(name string) []fields {
	l, ok := f.in[name].(cbor.List)
	if f.in[name] != nil && !ok {
		f.refuse(name)
	}
	var all []fields
	for _, v := range l {
		m, ok := v.(cbor.Map)
		if !ok {
			f.refuse(name)
		}
		all = append(all, fields{in: m})
	}
	return all
}

func (f *fields) child(name string) fields {
	m, ok := f.in[name].(cbor.Map)
	if f.in[name] != nil && !ok {
		f.refuse(name)
	}
	return fields{in: m}
}

// only refuses members that are not among names.
func (f *fields) only(names ...string) *apiError {
	for name := range f.in {
		if !slices.Contains(names, name) {
			return metricError("ValidationError", "This endpoint does not know the member %s.", name)
		}
	}
	return nil
}

func (s *metricsAPI) list(region string, r *fields) (cbor.Map, *apiError) {
	if e := r.only("Namespace", "MetricName", "Dimensions", "NextToken", "RecentlyActive"); e != nil {
		return nil, e
	}
	namespace, name, recent := r.text("Namespace"), r.text("MetricName"), r.text("RecentlyActive")
	if recent != "" && recent != "PT3H" {
		return nil, metricError("InvalidParameterValueException", "The value %s for parameter RecentlyActive is not supported.", recent)
	}
	filters := r.list("Dimensions")
	if len(filters) > 10 {
		return nil, metricError("InvalidParameterValueException", "The collection Dimensions must not have a size greater than 10.")
	}
	now := time.Now()
	since := now.Add(-listedFor)
	if recent != "" {
		since = now.Add(-activeFor)
	}
	var keys []string
	for key, t := range s.series[region] {
		last, any := t.last(now)
		if !any || last.Before(since) || namespace != "" && namespace != t.Namespace || name != "" && name != t.Name {
			continue
		}
		if !slices.ContainsFunc(filters, func(f fields) bool {
			v, ok := t.Dimensions[f.text("Name")]
			return !ok || f.text("Value") != "" && f.text("Value") != v
		}) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	of := fmt.Sprint("metrics ", region, namespace, name, recent, len(filters))
	keys, token, e := nextPage(&s.tokens, of, r.text("NextToken"), keys, maxMetricList, metricError("InvalidParameterValueException", "Invalid nextToken"))
	if e != nil {
		return nil, e
	}
	list := cbor.List{}
	for _, key := range keys {
		t := s.series[region][key]
		dimensions := cbor.List{}
		for _, n := range t.names {
			dimensions = append(dimensions, cbor.Map{"Name": cbor.String(n), "Value": cbor.String(t.Dimensions[n])})
		}
		list = append(list, cbor.Map{"Namespace": cbor.String(t.Namespace), "MetricName": cbor.String(t.Name), "Dimensions": dimensions})
	}
	out := cbor.Map{"Metrics": list}
	if token != "" {
		out["NextToken"] = cbor.String(token)
	}
	return out, nil
}

var queryID = regexp.MustCompile(`^[a-z][a-zA-Z0-9_]{0,254}$`)

// query is one member of MetricDataQueries.
type metricQuery struct {
	id, label, stat string
	period          time.Duration
	series          *series // nil: nobody ever published it
}

func (s *metricsAPI) queries(region string, r *fields) ([]metricQuery, *apiError) {
	list := r.list("MetricDataQueries")
	switch n := len(list); {
	case n == 0:
		return nil, metricError("MissingRequiredParameterException", "The parameter MetricDataQueries is required.")
	case n > maxMetricQueries:
		return nil, metricError("ValidationError", "The collection MetricDataQueries must not have a size greater than %d.", maxMetricQueries)
	}
	used := map[string]bool{}
	queries := make([]metricQuery, 0, len(list))
	for i := range list {
		q := &list[i]
		if e := q.only("Id", "MetricStat", "ReturnData", "Label"); e != nil {
			return nil, e
		}
		id := q.text("Id")
		if !queryID.MatchString(id) || used[id] {
			return nil, metricError("ValidationError", "The values for parameter id in MetricDataQueries are not valid or not unique: %q.", id)
		}
		used[id] = true
		stat := q.child("MetricStat")
		if e := stat.only("Metric", "Period", "Stat", "Unit"); e != nil {
			return nil, e
		}
		metric := stat.child("Metric")
		m := Metric{Namespace: metric.text("Namespace"), Name: metric.text("MetricName"), Dimensions: map[string]string{}}
		for _, d := range metric.list("Dimensions") {
			m.Dimensions[d.text("Name")] = d.text("Value")
		}
		period, _ := stat.number("Period")
		name := stat.text("Stat")
		_, known := statistic(name, []float64{1})
		switch {
		case m.Namespace == "" || m.Name == "":
			return nil, metricError("MissingRequiredParameterException", "The parameter MetricDataQueries.member.%d.MetricStat.Metric is required.", i+1)
		case !known:
			return nil, metricError("ValidationError", "The value %s for parameter MetricDataQueries.member.%d.MetricStat.Stat is not supported.", name, i+1)
		case period <= 0 || period > 86_400 || period%60 != 0 && !slices.Contains([]int{1, 5, 10, 20, 30}, period):
			return nil, metricError("ValidationError", "The parameter MetricDataQueries.member.%d.MetricStat.Period must be 1, 5, 10, 20, 30 or a multiple of 60.", i+1)
		}
		key, _ := m.key()
		queries = append(queries, metricQuery{
			id: id, label: cmp.Or(q.text("Label"), m.Name), stat: name, period: time.Duration(period) * time.Second, series: s.series[region][key],
		})
		r.bad = cmp.Or(r.bad, q.bad, stat.bad, metric.bad)
	}
	return queries, nil
}

// statistic computes one of the known statistics of some values.
func statistic(name string, values []float64) (v float64, known bool) {
	sum := 0.0
	for _, x := range values {
		sum += x
	}
	switch name {
	case "Average":
		return sum / float64(len(values)), true
	case "Sum":
		return sum, true
	case "SampleCount":
		return float64(len(values)), true
	case "Minimum":
		return slices.Min(values), true
	case "Maximum":
		return slices.Max(values), true
	}
	p, err := strconv.ParseFloat(strings.TrimPrefix(name, "p"), 64)
	if !strings.HasPrefix(name, "p") || err != nil || p < 0 || p > 100 {
		return 0, false
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(0, int(math.Ceil(p/100*float64(len(sorted))))-1)], true
}

func (s *metricsAPI) get(region string, r *fields) (cbor.Map, *apiError) {
	if e := r.only("StartTime", "EndTime", "MetricDataQueries", "ScanBy", "MaxDatapoints", "NextToken"); e != nil {
		return nil, e
	}
	queries, e := s.queries(region, r)
	if e != nil {
		return nil, e
	}
	from, to, order := r.time("StartTime"), r.time("EndTime"), r.text("ScanBy")
	most, given := r.number("MaxDatapoints")
	switch {
	case from.IsZero() || to.IsZero():
		return nil, metricError("MissingRequiredParameterException", "The parameters StartTime and EndTime are required.")
	case !from.Before(to):
		return nil, metricError("ValidationError", "The parameter EndTime must be greater than StartTime.")
	case order != "" && order != "TimestampAscending" && order != "TimestampDescending":
		return nil, metricError("ValidationError", "The value %s for parameter ScanBy is not supported.", order)
	case given && (most < 1 || most > maxDatapoints):
		return nil, metricError("ValidationError", "The parameter MaxDatapoints must be between 1 and %d.", maxDatapoints)
	case !given:
		most = maxDatapoints
	}
	if s.most > 0 {
		most = min(most, s.most)
	}
	of := fmt.Sprint("data ", region, from.UnixMilli(), to.UnixMilli(), order, len(queries), queries[0].id, queries[len(queries)-1].id)
	position, e := s.tokens.open(of, r.text("NextToken"), metricError("InvalidNextToken", "The next token specified is invalid."))
	if e != nil {
		return nil, e
	}
	skip, _ := strconv.Atoi(position) // our own token
	now := time.Now()
	results := cbor.List{}
	more := false
	at := 0 // points of the whole answer so far
	for _, q := range queries {
		stamps, values := q.points(from, to, now)
		if order != "TimestampAscending" {
			slices.Reverse(stamps)
			slices.Reverse(values)
		}
		begin := min(max(skip-at, 0), len(stamps))
		end := min(max(skip+most-at, 0), len(stamps))
		status := "Complete"
		if end < len(stamps) {
			status, more = "PartialData", true
		}
		at += len(stamps)
		ts, vs := cbor.List{}, cbor.List{}
		for i := begin; i < end; i++ {
			ts = append(ts, &cbor.Tag{ID: 1, Value: cbor.Uint(stamps[i])})
			vs = append(vs, cbor.Float64(values[i]))
		}
		results = append(results, cbor.Map{
			"Id": cbor.String(q.id), "Label": cbor.String(q.label), "StatusCode": cbor.String(status), "Timestamps": ts, "Values": vs,
		})
	}
	out := cbor.Map{"MetricDataResults": results, "Messages": cbor.List{}}
	if more {
		out["NextToken"] = cbor.String(s.tokens.issue(of, strconv.Itoa(skip+most)))
	}
	return out, nil
}

// points returns the statistic of each period in [from, to) that has values,
// oldest first. Source: formats F-17, retention and rounding.
func (q *metricQuery) points(from, to, now time.Time) (stamps []int64, values []float64) {
	age := now.Sub(from)
	if q.series == nil ||
		q.period < time.Minute && age > fineFor ||
		q.period%(5*time.Minute) != 0 && age > minuteFor ||
		q.period%time.Hour != 0 && age > fiveMinutesFor {
		return nil, nil
	}
	grain := min(q.period, time.Minute)
	switch {
	case age > fiveMinutesFor:
		grain = time.Hour
	case age > minuteFor:
		grain = 5 * time.Minute
	}
	from = from.Truncate(grain)
	var batch []float64
	slot := int64(-1) // periods since 1970
	flush := func() {
		if len(batch) > 0 {
			v, _ := statistic(q.stat, batch)
			stamps, values = append(stamps, slot*int64(q.period/time.Second)), append(values, v)
		}
		batch = batch[:0]
	}
	for i := range q.series.data {
		d := &q.series.data[i]
		if d.Published.After(now) || d.Time.Before(from) || !d.Time.Before(to) {
			continue
		}
		if at := d.Time.Unix() / int64(q.period/time.Second); at != slot {
			flush()
			slot = at
		}
		batch = append(batch, d.Value)
	}
	flush()
	return stamps, values
}
