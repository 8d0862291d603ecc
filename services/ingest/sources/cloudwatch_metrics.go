package sources

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
)

func init() {
	define("cloudwatch_metrics", "Polls metrics of CloudWatch: an event for each data point.", defaultCloudWatchMetrics, openCloudWatchMetrics)
}

var (
	errTooManyMetrics = fault.Define("ingest.too_many_metrics", fault.Stop,
		"name the namespaces or metrics that are needed, split them over several sources, or raise max_metrics; the first ones are read")
	errMetricForbidden = fault.Define("ingest.metric_forbidden", fault.Stop,
		"grant cloudwatch:GetMetricData to the identity that penstock uses; the other metrics are read")
	errMetricFailed = fault.Define("ingest.metric_failed", fault.Retry,
		"none needed if it passes: CloudWatch could not compute it, and is asked again from the cursor")
)

// CloudWatchMetricsConfig configures the cloudwatch_metrics source. Source: features
// DEV-16, DEV-17, DEV-77, DEV-78; formats F-17.
type CloudWatchMetricsConfig struct {
	PollConfig
	// Regions whose metrics are read. Empty: the one of aws.region, else as the SDK
	// finds it.
	Regions []string `yaml:"regions"`
	// MetricNamespaces to read, e.g. AWS/EC2; "*" takes all. Required.
	MetricNamespaces []string `yaml:"metric_namespaces"`
	// Metrics are patterns of metric names with * and ?. Empty takes all.
	Metrics []string `yaml:"metrics"`
	// SkipMetrics are patterns of metric names to leave out.
	SkipMetrics []string `yaml:"skip_metrics"`
	// RequestPeriod is the time that one data point stands for. 1, 5, 10, 30, 60 or
	// any multiple of 60, up to a day. Unit: seconds.
	RequestPeriod int `yaml:"request_period_in_seconds"`
	// Statistics of each metric: Average, Sum, Minimum, Maximum, SampleCount, p99 and
	// the like. Each makes data points of its own.
	Statistics []string `yaml:"statistics"`
	// Delay holds the reading back, since data points come some time after the period
	// that they stand for. Unit: duration, 0s to 24h.
	Delay time.Duration `yaml:"delay"`
	// Overlap is how far what was read is read again, for points that came or
	// changed later. Unit: duration, 0s to 24h.
	Overlap time.Duration `yaml:"overlap"`
	// StartTime is the time of the first data points, as in RFC 3339. Empty: the last
	// full period.
	StartTime string `yaml:"start_time"`
	// RecentlyActive reads metrics only that had data in the last three hours, while
	// nothing older is to be read.
	RecentlyActive bool `yaml:"recently_active"`
	// MaxMetrics bounds the metrics of one namespace and region, which are kept in
	// memory. With more, the first ones are read and the source tells so.
	MaxMetrics int `yaml:"max_metrics"`
	// Discovery is how often the metrics are listed anew. Unit: duration, at least 10s.
	Discovery time.Duration `yaml:"discovery"`
	// AWS is the access to CloudWatch.
	AWS awsclient.Config `yaml:"aws"`
}

func defaultCloudWatchMetrics() CloudWatchMetricsConfig {
	return CloudWatchMetricsConfig{
		PollConfig: defaultPoll(time.Minute), RequestPeriod: 60, Statistics: []string{"Average", "Sum", "Minimum", "Maximum", "SampleCount"},
		Delay: 2 * time.Minute, Overlap: 10 * time.Minute, RecentlyActive: true, MaxMetrics: 10_000, Discovery: 10 * time.Minute,
	}
}

// statisticName matches the statistics and the extended ones, e.g. p99.9 or TM(5%:95%).
// Source: Amazon CloudWatch User Guide, statistics definitions.
var statisticName = regexp.MustCompile(`^(Average|Sum|Minimum|Maximum|SampleCount|IQM|(p|tm|tc|ts|wm)\d{1,2}(\.\d{1,10})?|p100|(PR|TM|TC|TS|WM)\([\d.%]*:[\d.%]*\))$`)

// namespaceName as CloudWatch takes it, or "*".
var namespaceName = regexp.MustCompile(`^([^:][^*]{0,254}|\*)$`)

// Validate reports every problem, each with the key to change.
func (c CloudWatchMetricsConfig) Validate() error {
	var p config.Problems
	c.check(&p)
	checkRegions(&p, c.Regions)
	p.Need(len(c.MetricNamespaces) > 0, "metric_namespaces", `name the namespaces, e.g. [AWS/EC2, AWS/Lambda]; "*" takes all`)
	for i, n := range c.MetricNamespaces {
		p.Need(namespaceName.MatchString(n) && !slices.Contains(c.MetricNamespaces[:i], n), "metric_namespaces["+strconv.Itoa(i)+"]",
			`write a namespace once, e.g. AWS/EC2; patterns are not known, only "*" for all`)
		p.Need(n != "*" || len(c.MetricNamespaces) == 1, "metric_namespaces", `leave the others out, "*" takes all`)
	}
	for i, s := range c.Metrics {
		p.Need(s != "", "metrics["+strconv.Itoa(i)+"]", "write a pattern, or leave the entry out")
	}
	for i, s := range c.SkipMetrics {
		p.Need(s != "", "skip_metrics["+strconv.Itoa(i)+"]", "write a pattern, or leave the entry out")
	}
	if !goodPeriod(c.RequestPeriod) { // Source: features DEV-160, its text
		p.Add("request_period_in_seconds", "is not one of the values that there are",
			`the property "request_period_in_seconds" must have one of the following values: 1, 5, 10, 30, 60, or any multiple of 60`)
	}
	p.Need(len(c.Statistics) > 0 && len(c.Statistics) <= 20, "statistics", "name 1 to 20 statistics, e.g. [Average, Maximum]")
	for i, s := range c.Statistics {
		p.Need(statisticName.MatchString(s) && !slices.Contains(c.Statistics[:i], s), "statistics["+strconv.Itoa(i)+"]",
			"write once Average, Sum, Minimum, Maximum, SampleCount, or an extended one like p99")
	}
	p.Need(c.Delay >= 0 && c.Delay <= 24*time.Hour, "delay", "use 0s to 24h, e.g. 2m")
	p.Need(c.Overlap >= 0 && c.Overlap <= 24*time.Hour, "overlap", "use 0s to 24h, e.g. 10m")
	checkStart(&p, c.StartTime)
	p.Need(c.MaxMetrics >= 1 && c.MaxMetrics <= 1_000_000, "max_metrics", "use 1 to 1000000 metrics")
	p.Need(c.Discovery >= 10*time.Second, "discovery", "use 10s or more")
	return p.Err()
}

// goodPeriod is the rule of features DEV-78. CloudWatch itself takes no more than a day.
func goodPeriod(s int) bool {
	return slices.Contains([]int{1, 5, 10, 30}, s) || s > 0 && s%60 == 0 && s <= 86_400
}

// The calls, with the quotas of an account and region.
var (
	callListMetrics = target{api: "cloudwatch:ListMetrics", rate: 25}
	callMetricData  = target{api: "cloudwatch:GetMetricData", rate: 50}
)

const (
	// maxQueries in one call. Source: formats F-17.
	maxQueries = 500
	// pagePoints bounds the data points of an answer; 100,800 would be allowed.
	pagePoints = 20_160
	// windowPeriods is how many periods one window has at most, so that no call
	// asks for more than the 100,800 points that CloudWatch gives.
	windowPeriods = 200
	// rememberedPoints bounds the values that are remembered. About 10 MiB.
	rememberedPoints = 200_000
	// activeWindow is what "recently active" means to CloudWatch.
	activeWindow = 3 * time.Hour
)

// cloudWatchMetrics polls namespaces, a shard each, or one for all.
//
//	 read again        new          not yet
//	├─────────────┼───────────────┼─────────▶
//	    overlap  cursor      now - delay
//
// Windows are cut at multiples of the period. Values that were read before are known
// by series and time; one that has changed since is a new revision of its point.
type cloudWatchMetrics struct {
	cfg     CloudWatchMetricsConfig
	format  string
	regions []string
	clients map[string]*cloudwatch.Client

	mu    sync.Mutex
	lists map[string]*metricList // by shard
	known pointSet
}

// metricSpace is the data of a shard.
type metricSpace struct{ region, namespace string }

// metricList is what was listed for a shard. It is replaced, never changed.
type metricList struct {
	series []metricSeries
	listed time.Time
	// recent: metrics without data in the last three hours are not there.
	recent bool
	// over: there are more than max_metrics.
	over bool
}

// metricSeries is one metric, with the beginning of its documents.
type metricSeries struct {
	metric types.Metric
	doc    []byte
	id     messages.ID
}

func openCloudWatchMetrics(ctx context.Context, cfg CloudWatchMetricsConfig, deps Deps) (Source, error) {
	base, err := pollAWS(ctx, cfg.AWS)
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", deps.Name, err)
	}
	s := &cloudWatchMetrics{
		cfg: cfg, format: formatOr(deps, "cwmetrics"), clients: map[string]*cloudwatch.Client{}, lists: map[string]*metricList{},
		known: pointSet{most: rememberedPoints},
	}
	if s.regions, err = regionsOf(base, cfg.Regions); err != nil {
		return nil, fmt.Errorf("source %s: %w", deps.Name, err)
	}
	for _, r := range s.regions {
		s.clients[r] = cloudwatch.NewFromConfig(base, func(o *cloudwatch.Options) { o.Region = r })
	}
	return openPoller(deps, cfg.PollConfig.of(cfg.AWS), s)
}

// plan implements poller: a shard for each namespace that is named. It asks nobody.
func (s *cloudWatchMetrics) plan(context.Context, *caller) (plan, error) {
	var p plan
	for _, region := range s.regions {
		for _, n := range s.cfg.MetricNamespaces {
			p.shards = append(p.shards, shard{name: region + ":" + n, data: metricSpace{region, n}})
		}
	}
	p.again = time.Hour
	return p, nil
}

// metricCursor is how far a shard has been read.
type metricCursor struct {
	// Read: the points before it have been read. Unix seconds, a multiple of the period.
	Read int64 `json:"read"`
}

// metricWindow is a stretch of time, its end not included, at multiples of the period.
// What lies before fresh was read before. Unit: Unix seconds.
type metricWindow struct{ from, fresh, to int64 }

// metricRetention is for how long points of a period are kept. Source: formats F-17.
func metricRetention(period int64) time.Duration {
	const day = 24 * time.Hour
	switch {
	case period < 60:
		return 3 * time.Hour
	case period%300 != 0:
		return 15 * day
	case period%3600 != 0:
		return 63 * day
	}
	return 455 * day
}

// metricWindows plans what is to be read now, oldest first, from a cursor on; the
// last window begins overlap earlier. lost is the stretch whose points CloudWatch no
// longer keeps.
func metricWindows(read, now, period int64, delay, overlap time.Duration) (windows []metricWindow, lost metricWindow) {
	align := func(t int64) int64 { return t - t%period }
	to := align(now - int64(delay/time.Second))
	// One period more than the retention, so that a window is not half gone.
	oldest := align(now-int64(metricRetention(period)/time.Second)) + period
	if read = align(read); read < oldest {
		lost = metricWindow{from: read, fresh: read, to: min(oldest, to)}
		read = oldest
	}
	for from := read; from < to; from += windowPeriods * period {
		windows = append(windows, metricWindow{from: from, fresh: from, to: min(to, from+windowPeriods*period)})
	}
	if len(windows) == 0 {
		return nil, lost
	}
	last := &windows[len(windows)-1]
	again := max(align(to-period-int64(overlap/time.Second)), oldest, last.to-windowPeriods*period)
	last.from = min(last.from, again)
	return windows, lost
}

// pull implements poller.
func (s *cloudWatchMetrics) pull(ctx context.Context, p *pull) error {
	space, _ := p.shard.data.(metricSpace)
	at, err := p.position(ctx, "")
	if err != nil {
		return err
	}
	period, now := int64(s.cfg.RequestPeriod), time.Now()
	var cur metricCursor
	if !at.read(&cur) {
		cur.Read = startOf(s.cfg.StartTime, now.Add(-s.cfg.Delay-time.Duration(period)*time.Second)).Unix()
	}
	windows, lost := metricWindows(cur.Read, now.Unix(), period, s.cfg.Delay, s.cfg.Overlap)
	if lost.from < lost.to {
		p.gap(ctx, time.Unix(lost.from, 0), time.Unix(lost.to, 0), "CloudWatch does not keep points of this period for so long")
	}
	if len(windows) == 0 {
		return nil
	}
	// After a restart metrics matter that have been silent since.
	recent := s.cfg.RecentlyActive && now.Unix()-windows[0].fresh < int64((activeWindow-time.Hour)/time.Second)
	list, err := s.list(ctx, p, space, recent)
	if err != nil {
		return err
	}
	r := &metricReader{
		cloudWatchMetrics: s, pull: p, space: space, list: list,
		again: now.Add(-s.cfg.Delay - s.cfg.Overlap - 2*time.Duration(period)*time.Second),
	}
	for i := range windows {
		if p.stopped() {
			return nil
		}
		p.log.DebugContext(ctx, "a window is read", "from", time.Unix(windows[i].from, 0).UTC(), "to", time.Unix(windows[i].to, 0).UTC(),
			"metrics", len(list.series)) // Source: features DEV-101
		if err := r.window(ctx, windows[i]); err != nil {
			return err
		}
		cur.Read = windows[i].to
		if err := at.move(ctx, &cur); err != nil {
			return err
		}
		p.reached(time.Unix(cur.Read, 0))
	}
	switch {
	case r.forbidden != "":
		return errMetricForbidden.New(nil, "read %s of %s in %s", r.forbidden, space.namespace, space.region)
	case list.over:
		return errTooManyMetrics.New(nil, "list the metrics of %s in %s: there are more than max_metrics, %d", space.namespace, space.region, s.cfg.MaxMetrics)
	}
	return nil
}

// list returns the metrics of a shard, listed anew when that was long ago.
func (s *cloudWatchMetrics) list(ctx context.Context, p *pull, space metricSpace, recent bool) (*metricList, error) {
	s.mu.Lock()
	l := s.lists[p.shard.name]
	s.mu.Unlock()
	if l != nil && time.Since(l.listed) < s.cfg.Discovery && (recent || !l.recent) {
		return l, nil
	}
	l = &metricList{listed: time.Now(), recent: recent}
	in := &cloudwatch.ListMetricsInput{}
	if space.namespace != "*" {
		in.Namespace = &space.namespace
	}
	if recent {
		in.RecentlyActive = types.RecentlyActivePt3h
	}
	for !l.over {
		var out *cloudwatch.ListMetricsOutput
		err := p.call(ctx, callListMetrics.at(space.region), func(ctx context.Context) (err error) {
			out, err = s.clients[space.region].ListMetrics(ctx, in)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, m := range out.Metrics {
			name := aws.ToString(m.MetricName)
			if len(s.cfg.Metrics) > 0 && !patterns(s.cfg.Metrics).match(name) || patterns(s.cfg.SkipMetrics).match(name) {
				continue
			}
			if l.over = len(l.series) == s.cfg.MaxMetrics; l.over {
				break
			}
			l.series = append(l.series, newSeries(space.region, m))
		}
		if in.NextToken = out.NextToken; in.NextToken == nil {
			break
		}
	}
	// The order of calls, and with it of pages, is the same each time.
	slices.SortFunc(l.series, func(a, b metricSeries) int { return strings.Compare(string(a.doc), string(b.doc)) })
	s.mu.Lock()
	s.lists[p.shard.name] = l
	s.mu.Unlock()
	return l, nil
}

// newSeries begins the document of a metric's points: namespace, metric, dimensions
// in the order of their names. Source: formats F-17.
func newSeries(region string, m types.Metric) metricSeries {
	dimensions := make(map[string]string, len(m.Dimensions))
	for _, d := range m.Dimensions {
		dimensions[aws.ToString(d.Name)] = aws.ToString(d.Value)
	}
	doc := appendJSON([]byte(`{"namespace":`), aws.ToString(m.Namespace))
	doc = appendJSON(append(doc, `,"metric":`...), aws.ToString(m.MetricName))
	doc = append(doc, `,"dimensions":{`...)
	for i, name := range slices.Sorted(maps.Keys(dimensions)) {
		if i > 0 {
			doc = append(doc, ',')
		}
		doc = append(appendJSON(doc, name), ':')
		doc = appendJSON(doc, dimensions[name])
	}
	doc = append(doc, '}')
	return metricSeries{metric: m, doc: doc, id: messages.NewID([]byte(region), doc)}
}

// appendJSON appends a text as a JSON string.
func appendJSON(dst []byte, text string) []byte {
	quoted, err := json.Marshal(text)
	if err != nil {
		panic(err) // a string is always written
	}
	return append(dst, quoted...)
}

// metricReader reads windows of a shard.
type metricReader struct {
	*cloudWatchMetrics
	*pull
	space metricSpace
	list  *metricList
	// again: what is younger is within the overlap of the next pull.
	again time.Time
	// forbidden is a metric that may not be read.
	forbidden string
}

// metricQuery is one statistic of a series in a call.
type metricQuery struct {
	series *metricSeries
	stat   string
}

// window reads all series in a window, some hundred queries a call.
func (r *metricReader) window(ctx context.Context, w metricWindow) error {
	batch := make([]metricQuery, 0, min(maxQueries, len(r.list.series)*len(r.cfg.Statistics)))
	for i := range r.list.series {
		for _, stat := range r.cfg.Statistics {
			batch = append(batch, metricQuery{&r.list.series[i], stat})
			if len(batch) < maxQueries {
				continue
			}
			if err := r.batch(ctx, w, batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	if len(batch) == 0 {
		return nil
	}
	return r.batch(ctx, w, batch)
}

func (r *metricReader) batch(ctx context.Context, w metricWindow, batch []metricQuery) error {
	period := int32(r.cfg.RequestPeriod)
	in := &cloudwatch.GetMetricDataInput{
		StartTime: aws.Time(time.Unix(w.from, 0)), EndTime: aws.Time(time.Unix(w.to, 0)), ScanBy: types.ScanByTimestampAscending,
		MaxDatapoints: aws.Int32(pagePoints), MetricDataQueries: make([]types.MetricDataQuery, len(batch)),
	}
	for i := range batch {
		in.MetricDataQueries[i] = types.MetricDataQuery{
			Id:         aws.String("q" + strconv.Itoa(i)),
			MetricStat: &types.MetricStat{Metric: &batch[i].series.metric, Period: &period, Stat: &batch[i].stat},
		}
	}
	for {
		var out *cloudwatch.GetMetricDataOutput
		err := r.call(ctx, callMetricData.at(r.space.region), func(ctx context.Context) (err error) {
			out, err = r.clients[r.space.region].GetMetricData(ctx, in)
			return err
		})
		if err != nil {
			return err
		}
		if err := r.page(ctx, w, batch, out); err != nil {
			return err
		}
		if in.NextToken = out.NextToken; in.NextToken == nil {
			return nil
		}
	}
}

// page stores the points of an answer that are new.
func (r *metricReader) page(ctx context.Context, w metricWindow, batch []metricQuery, out *cloudwatch.GetMetricDataOutput) error {
	pg := &page{api: callMetricData.api, resource: r.space.namespace, region: r.space.region, format: r.format, created: time.Unix(w.to, 0)}
	var points []messages.ID
	var values []pointValue
	var ends []int
	var buf []byte
	for i := range out.MetricDataResults {
		res := &out.MetricDataResults[i]
		if err := r.judge(batch, res); err != nil {
			return err
		}
		q := &batch[queryOf(res)]
		for j, at := range res.Timestamps {
			if t := at.Unix(); t < w.from || t >= w.to {
				continue // rounded by CloudWatch beyond what was asked
			}
			k := q.point(at)
			v, fresh := r.known.revise(k, res.Values[j])
			if !fresh {
				continue
			}
			buf = appendPoint(buf, q, r.cfg.RequestPeriod, at, v)
			ends = append(ends, len(buf))
			if at.After(r.again) { // it will be asked for again
				points, values = append(points, k), append(values, v)
			}
		}
	}
	start := 0
	for _, end := range ends {
		pg.records = append(pg.records, buf[start:end])
		start = end
	}
	if err := r.store(ctx, pg); err != nil {
		return err
	}
	r.known.add(points, values)
	return nil
}

// queryOf is the number of the query that a result is of, below 0 for none.
func queryOf(res *types.MetricDataResult) int {
	n, err := strconv.Atoi(strings.TrimPrefix(aws.ToString(res.Id), "q"))
	if err != nil {
		return -1
	}
	return n
}

// judge looks at how a query fared.
func (r *metricReader) judge(batch []metricQuery, res *types.MetricDataResult) error {
	n := queryOf(res)
	if n < 0 || n >= len(batch) || len(res.Timestamps) != len(res.Values) {
		return errMetricFailed.New(nil, "read an answer of %s: result %q fits no query", callMetricData.api, aws.ToString(res.Id))
	}
	name := aws.ToString(batch[n].series.metric.MetricName)
	switch res.StatusCode {
	case types.StatusCodeForbidden:
		r.forbidden = name
	case types.StatusCodeInternalError:
		return errMetricFailed.New(nil, "read %s of %s", batch[n].stat, name)
	case types.StatusCodeComplete, types.StatusCodePartialData: // the next page has the rest
	}
	return nil
}

// appendPoint appends the document of a data point.
func appendPoint(dst []byte, q *metricQuery, period int, at time.Time, v pointValue) []byte {
	dst = append(append(dst, q.series.doc...), `,"stat":`...)
	dst = append(appendJSON(dst, q.stat), `,"period":`...)
	dst = append(strconv.AppendInt(dst, int64(period), 10), `,"value":`...)
	dst = append(appendNumber(dst, v.value), `,"timestamp":"`...)
	dst = append(at.UTC().AppendFormat(dst, time.RFC3339), '"')
	if v.revision > 0 {
		dst = strconv.AppendUint(append(dst, `,"revision":`...), uint64(v.revision), 10)
	}
	return append(dst, '}')
}

// appendNumber writes a float as JSON does; what JSON has not is null.
func appendNumber(dst []byte, f float64) []byte {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return append(dst, "null"...)
	}
	format := byte('f')
	if a := math.Abs(f); a != 0 && (a < 1e-6 || a >= 1e21) {
		format = 'e'
	}
	return strconv.AppendFloat(dst, f, format, -1, 64)
}

// point is the id of a data point, for pointSet.
func (q *metricQuery) point(at time.Time) messages.ID {
	var unix [8]byte
	binary.BigEndian.PutUint64(unix[:], uint64(at.Unix()))
	return messages.NewID(q.series.id[:], []byte(q.stat), unix[:])
}

// pointValue is the value of a point, and how often it has changed.
type pointValue struct {
	value    float64
	revision uint32
}

// pointSet remembers the values of the last points, at least half of most. A point
// that is forgotten counts as new: dedupe drops it, unless it has changed. Methods
// may be called concurrently.
type pointSet struct {
	mu         sync.Mutex
	most       int
	young, old map[messages.ID]pointValue
}

// revise tells whether a point is new or has another value than before, and what to
// remember once it is stored.
func (s *pointSet) revise(k messages.ID, value float64) (v pointValue, fresh bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, known := s.young[k]
	if !known {
		if before, known = s.old[k]; known {
			s.put(k, before) // it is asked for still
		}
	}
	switch {
	case !known:
		return pointValue{value: value}, true
	case before.value == value: //nolint:gocritic // the same bits came again
		return before, false
	}
	return pointValue{value: value, revision: before.revision + 1}, true
}

func (s *pointSet) add(keys []messages.ID, values []pointValue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, k := range keys {
		s.put(k, values[i])
	}
}

func (s *pointSet) put(k messages.ID, v pointValue) {
	if s.young == nil || len(s.young) >= s.most/2 {
		s.young, s.old = map[messages.ID]pointValue{}, s.young
	}
	s.young[k] = v
}
