package sources

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
)

func init() {
	define("cloudwatch_logs", "Polls log groups of CloudWatch Logs.", defaultCloudWatchLogs, openCloudWatchLogs)
}

// CloudWatchLogsConfig configures the cloudwatch_logs source. Source: features
// DEV-18, DEV-74 to DEV-76; formats F-16.
type CloudWatchLogsConfig struct {
	PollConfig
	// Regions whose log groups are read. Empty: the one of aws.region, else as the
	// SDK finds it.
	Regions []string `yaml:"regions"`
	// LogGroups to read: names, patterns with * (any run of characters, slashes
	// included) and ?, or "/" for all groups of the account in each region. Required.
	LogGroups []string `yaml:"log_groups"`
	// SkipLogGroups are patterns of groups to leave out.
	SkipLogGroups []string `yaml:"skip_log_groups"`
	// LogStreams are patterns of the streams whose events are taken; the others are
	// counted. Empty takes all.
	LogStreams []string `yaml:"log_streams"`
	// SkipLogStreams are patterns of streams to leave out, also where LogStreams
	// takes them.
	SkipLogStreams []string `yaml:"skip_log_streams"`
	// FilterPattern is applied by CloudWatch Logs, in its own syntax: what does not
	// match is neither transferred nor counted.
	FilterPattern string `yaml:"filter_pattern"`
	// StartTime is from when on the events of a group are read the first time, as in
	// RFC 3339. Empty: from now on; groups that come up later are read whole.
	StartTime string `yaml:"start_time"`
	// UseFirstOptimizedRetrieval reads what was before the first start in slices of
	// time over all streams of a group. Otherwise it goes stream by stream, in the
	// order of their names, which takes a call or more for each of them.
	UseFirstOptimizedRetrieval bool `yaml:"use_first_optimized_retrieval"`
	// Slice is how much time a slice covers, to begin with: it grows over quiet times
	// and shrinks in busy ones. Unit: duration, 1m to 24h.
	Slice time.Duration `yaml:"slice"`
	// Overlap is how late after its own time an event may arrive to be found in
	// every case. So much is read again at each pull; what was known is left out.
	// Unit: duration, 0s to 24h.
	Overlap time.Duration `yaml:"overlap"`
	// LateWindow looks for events that arrived later than overlap: what lies back so
	// far is read through again every late_every, for what has come since. 0 does
	// not. Unit: duration, up to 336h, the oldest that CloudWatch Logs takes.
	LateWindow time.Duration `yaml:"late_window"`
	// LateEvery is the time between two such looks. Unit: duration, at least 1m.
	LateEvery time.Duration `yaml:"late_every"`
	// Discovery is how often the groups that patterns match are listed anew. Unit:
	// duration, at least 10s.
	Discovery time.Duration `yaml:"discovery"`
	// AWS is the access to CloudWatch Logs.
	AWS awsclient.Config `yaml:"aws"`
}

func defaultCloudWatchLogs() CloudWatchLogsConfig {
	return CloudWatchLogsConfig{
		PollConfig: defaultPoll(time.Minute), UseFirstOptimizedRetrieval: true, Slice: time.Hour, Overlap: 2 * time.Minute,
		LateEvery: time.Hour, Discovery: 5 * time.Minute,
	}
}

// allGroups stands for all log groups. Source: features DEV-74.
const allGroups = "/"

// Validate reports every problem, each with the key to change.
func (c CloudWatchLogsConfig) Validate() error {
	var p config.Problems
	c.check(&p)
	checkRegions(&p, c.Regions)
	p.Need(len(c.LogGroups) > 0, "log_groups", `name the log groups, e.g. [/aws/lambda/orders, "/ecs/*"]; "/" takes all of the account`)
	for _, list := range []struct {
		key      string
		patterns []string
	}{{"log_groups", c.LogGroups}, {"skip_log_groups", c.SkipLogGroups}, {"log_streams", c.LogStreams}, {"skip_log_streams", c.SkipLogStreams}} {
		for i, s := range list.patterns {
			p.Need(s != "" && len(s) <= 512, list.key+"["+strconv.Itoa(i)+"]", "write a name or a pattern of 1 to 512 characters, or leave the entry out")
		}
	}
	p.Need(len(c.FilterPattern) <= 1024, "filter_pattern", "use 1024 characters at most")
	checkStart(&p, c.StartTime)
	p.Need(c.Slice >= time.Minute && c.Slice <= maxSlice, "slice", "use 1m to 24h")
	p.Need(c.Overlap >= 0 && c.Overlap <= 24*time.Hour, "overlap", "use 0s to 24h, e.g. 2m")
	p.Need(c.LateWindow >= 0 && c.LateWindow <= 14*24*time.Hour, "late_window", "use 0s for none, up to 336h")
	p.Need(c.LateWindow == 0 || c.LateWindow > c.Overlap, "late_window", "use more than overlap, which is read again in any case")
	p.Need(c.LateEvery >= time.Minute, "late_every", "use 1m or more")
	p.Need(c.Discovery >= 10*time.Second, "discovery", "use 10s or more")
	return p.Err()
}

// checkRegions and checkStart are shared by the pollers of AWS.
func checkRegions(p *config.Problems, regions []string) {
	for i, r := range regions {
		p.Need(regionForm(r) && !slices.Contains(regions[:i], r), "regions["+strconv.Itoa(i)+"]", "write the name of a region once, e.g. eu-west-1")
	}
}

// Source: features DEV-69.
func checkStart(p *config.Problems, text string) {
	_, err := instantOf(text)
	p.Need(err == nil, "start_time", "write a time with its zone, e.g. 2026-01-05T00:00:00Z; or leave it out to start now")
}

// startOf is the start_time, or another time where there is none.
func startOf(text string, otherwise time.Time) time.Time {
	if t, err := instantOf(text); err == nil && !t.IsZero() {
		return t
	}
	return otherwise
}

// regionsOf are the regions to poll: those named, else that of the SDK.
func regionsOf(sdk aws.Config, named []string) ([]string, error) {
	if len(named) > 0 {
		return named, nil
	}
	if sdk.Region == "" {
		return nil, awsclient.NoRegion.New(nil, "choose the regions to poll")
	}
	return []string{sdk.Region}, nil
}

// formatOr is the format that the source is set to, or that of its API.
func formatOr(deps Deps, own string) string {
	if deps.Format == "" || deps.Format == "auto" {
		return own
	}
	return deps.Format
}

const (
	maxSlice = 24 * time.Hour
	minSlice = time.Minute
	// manyPages in a slice make the next one shorter.
	manyPages = 20
	// idleMove is how old the cursor of a group without events may get.
	idleMove = 5 * time.Minute
	// staleStreams is by how much lastEventTimestamp may lag behind. Source: Amazon
	// CloudWatch Logs API Reference, DescribeLogStreams.
	staleStreams = 2 * time.Hour
	// rememberedEvents bounds the ids that are remembered, over all groups. About
	// 10 MiB.
	rememberedEvents = 200_000
)

// The calls, with the quotas of an account and region. Source: formats F-16.
var (
	callLogGroups  = target{api: "logs:DescribeLogGroups", rate: 5}
	callLogStreams = target{api: "logs:DescribeLogStreams", rate: 5}
	callLogEvents  = target{api: "logs:FilterLogEvents", rate: 5}
)

// at is the target in a region.
func (t target) at(region string) target {
	t.region = region
	return t
}

// cloudWatchLogs polls log groups, a shard each.
//
//	         done ◀──────────── overlap ───────────▶ not read yet
//	─────────────────┬──────────────────────────────┬──────────▶ timestamp
//	            cursor.Read                  window began (now)
//
// CloudWatch Logs finds events by their own time only, and an event may arrive
// after events that are younger. So a window begins at the time before which no
// more is expected, and ends now. Events of the part that is read again are known
// by their eventId: here, as far as they are remembered, else in dedupe.
type cloudWatchLogs struct {
	cfg     CloudWatchLogsConfig
	format  string
	regions []string
	clients map[string]*cloudwatchlogs.Client
	known   *idSet

	mu     sync.Mutex
	listed map[string][]logGroup // by region, as they were listed last
}

// logGroup is the data of a shard. One without a name stands for a region whose
// groups could not be listed.
type logGroup struct {
	region, name string
	// arn is empty when the group was not listed.
	arn string
	// from is when reading begins where there is no cursor yet.
	from time.Time
}

func openCloudWatchLogs(ctx context.Context, cfg CloudWatchLogsConfig, deps Deps) (Source, error) {
	base, err := pollAWS(ctx, cfg.AWS)
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", deps.Name, err)
	}
	s := &cloudWatchLogs{
		cfg: cfg, format: formatOr(deps, "cwlogs"), clients: map[string]*cloudwatchlogs.Client{}, known: newIDSet(rememberedEvents),
		listed: map[string][]logGroup{},
	}
	if s.regions, err = regionsOf(base, cfg.Regions); err != nil {
		return nil, fmt.Errorf("source %s: %w", deps.Name, err)
	}
	for _, r := range s.regions {
		s.clients[r] = cloudwatchlogs.NewFromConfig(base, func(o *cloudwatchlogs.Options) { o.Region = r })
	}
	return openPoller(deps, cfg.PollConfig.of(cfg.AWS), s)
}

// plan implements poller: a shard for each group.
func (s *cloudWatchLogs) plan(ctx context.Context, c *caller) (plan, error) {
	since, err := firstStart(ctx, c)
	if err != nil {
		return plan{}, err
	}
	result := plan{again: s.cfg.Discovery}
	add := func(g logGroup) {
		result.shards = append(result.shards, shard{name: g.region + ":" + g.name, data: g})
	}
	for _, region := range s.regions {
		groups, err := s.groups(ctx, c, region, since)
		if err != nil && c.stopped() {
			return plan{}, err
		}
		if err != nil {
			// One region that refuses is not to stop the others: a shard stands for it,
			// and shows the error.
			add(logGroup{region: region})
			s.mu.Lock()
			groups = s.listed[region]
			s.mu.Unlock()
		}
		for _, g := range groups {
			add(g)
		}
	}
	return result, nil
}

// firstStart is when the source was started for the first time, kept as a cursor.
func firstStart(ctx context.Context, c *caller) (time.Time, error) {
	at, err := c.position(ctx, "first start")
	if err != nil {
		return time.Time{}, err
	}
	var first time.Time
	err = at.update(ctx, &first, func(known bool) bool {
		if !known {
			first = time.Now().UTC()
		}
		return !known
	})
	return first, err
}

// groups lists what the patterns match in a region. Names need no listing.
func (s *cloudWatchLogs) groups(ctx context.Context, c *caller, region string, since time.Time) ([]logGroup, error) {
	found := map[string]logGroup{}
	now := time.Now()
	for _, pattern := range s.cfg.LogGroups {
		prefix, _, _ := cutAny(pattern, "*?")
		if pattern == allGroups {
			prefix, pattern = "", "*"
		} else if prefix == pattern {
			if _, listed := found[pattern]; !listed && !patterns(s.cfg.SkipLogGroups).match(pattern) {
				found[pattern] = logGroup{region: region, name: pattern, from: startOf(s.cfg.StartTime, now)}
			}
			continue
		}
		in := &cloudwatchlogs.DescribeLogGroupsInput{}
		if prefix != "" {
			in.LogGroupNamePrefix = &prefix
		}
		for {
			var out *cloudwatchlogs.DescribeLogGroupsOutput
			err := c.call(ctx, callLogGroups.at(region), func(ctx context.Context) (err error) {
				out, err = s.clients[region].DescribeLogGroups(ctx, in)
				return err
			})
			if err != nil {
				return nil, err
			}
			for i := range out.LogGroups {
				g := &out.LogGroups[i]
				name := aws.ToString(g.LogGroupName)
				if !glob(pattern, name) || patterns(s.cfg.SkipLogGroups).match(name) || g.LogGroupClass == types.LogGroupClassDelivery {
					continue
				}
				from := now
				// A group that came up later is read from its beginning.
				if made := time.UnixMilli(aws.ToInt64(g.CreationTime)); made.After(since.Add(-s.cfg.Discovery)) {
					from = made
				}
				found[name] = logGroup{
					region: region, name: name, arn: strings.TrimSuffix(cmp.Or(aws.ToString(g.LogGroupArn), aws.ToString(g.Arn)), ":*"),
					from: startOf(s.cfg.StartTime, from),
				}
			}
			if in.NextToken = out.NextToken; in.NextToken == nil {
				break
			}
		}
	}
	groups := make([]logGroup, 0, len(found))
	for _, g := range found {
		groups = append(groups, g)
	}
	slices.SortFunc(groups, func(a, b logGroup) int { return strings.Compare(a.name, b.name) })
	s.mu.Lock()
	s.listed[region] = groups
	s.mu.Unlock()
	return groups, nil
}

// cutAny cuts s at the first of some characters.
func cutAny(s, chars string) (before, after string, found bool) {
	if i := strings.IndexAny(s, chars); i >= 0 {
		return s[:i], s[i+1:], true
	}
	return s, "", false
}

// logCursor is how far one log group has been read. It is stored after each page.
type logCursor struct {
	// Read: what is older has been read, and no more of it is expected. Unix ms.
	Read int64 `json:"read"`
	// Swept is when the last look for late events began. Unix ms.
	Swept int64 `json:"swept,omitempty"`
	// Slice is how long the next slice is to be. Unit: ms.
	Slice int64 `json:"slice,omitempty"`
	// Streams is set while the first retrieval goes stream by stream.
	Streams *logStreams `json:"streams,omitempty"`
	// Open is the window whose pages are being read.
	Open *logWindow `json:"open,omitempty"`
}

// logStreams is how far a retrieval stream by stream has come.
type logStreams struct {
	// Until is when it began. Unix ms.
	Until int64 `json:"until"`
	// After: the streams up to this name have been read.
	After string `json:"after,omitempty"`
}

// logWindow is one range of event times that is read page by page.
type logWindow struct {
	// From and To bound the timestamps of the events, both inclusive. Unix ms.
	From int64 `json:"from"`
	To   int64 `json:"to"`
	// Began is when the first page was asked for; events that arrive later may be
	// missing. Unix ms.
	Began int64 `json:"began"`
	// Token of the next page; empty for the first.
	Token string `json:"token,omitempty"`
	// Pages and Events read so far.
	Pages  int `json:"pages,omitempty"`
	Events int `json:"events,omitempty"`
	// Stream is the only one that is read; empty for all.
	Stream string `json:"stream,omitempty"`
	// Since leaves out events that arrived before; above 0 in a look for late events.
	// Unix ms.
	Since int64 `json:"since,omitempty"`
}

// next opens the window that is to be read at a time; last tells that it reaches up
// to now.
func (c *logCursor) next(now time.Time, cfg *CloudWatchLogsConfig) (last bool) {
	ms := now.UnixMilli()
	w := &logWindow{From: c.Read, To: ms, Began: ms}
	slice := cmp.Or(c.Slice, cfg.Slice.Milliseconds())
	if ms-c.Read > slice+cfg.Overlap.Milliseconds() {
		w.To = c.Read + slice - 1
	} else {
		last = true
	}
	c.Open = w
	return last
}

// sweep opens the window of a look for late events, if it is time for one.
func (c *logCursor) sweep(now time.Time, cfg *CloudWatchLogsConfig) bool {
	ms := now.UnixMilli()
	from := ms - cfg.LateWindow.Milliseconds()
	switch {
	case cfg.LateWindow == 0 || from >= c.Read:
		return false
	case c.Swept == 0: // the next one finds what arrives from now on
		c.Swept = ms
		return false
	case ms-c.Swept < cfg.LateEvery.Milliseconds():
		return false
	}
	c.Open = &logWindow{From: max(0, from), To: c.Read - 1, Began: ms, Since: max(1, c.Swept-cfg.Overlap.Milliseconds())}
	return true
}

// end closes the open window, whose last page has been stored.
func (c *logCursor) end(cfg *CloudWatchLogsConfig) {
	w := c.Open
	c.Open = nil
	switch {
	case w.Stream != "":
		c.Streams.After = w.Stream
		return
	case w.Since > 0:
		c.Swept = w.Began
		return
	}
	c.Read = max(c.Read, min(w.To+1, w.Began-cfg.Overlap.Milliseconds()))
	slice := cmp.Or(c.Slice, cfg.Slice.Milliseconds())
	switch {
	case w.To == w.Began: // up to now: it says nothing about slices
		slice = 0
	case w.Pages <= 1:
		slice = min(2*slice, maxSlice.Milliseconds())
	case w.Pages > manyPages:
		slice = max(slice/2, minSlice.Milliseconds())
	}
	c.Slice = slice
}

// pull implements poller.
func (s *cloudWatchLogs) pull(ctx context.Context, p *pull) error {
	g, ok := p.shard.data.(logGroup)
	if !ok || g.name == "" {
		_, err := s.groups(ctx, p.caller, g.region, time.Now())
		if err == nil {
			p.s.planNow()
		}
		return err
	}
	at, err := p.position(ctx, "")
	if err != nil {
		return err
	}
	r := &logReader{cloudWatchLogs: s, pull: p, group: g, at: at}
	if !at.read(&r.cur) {
		r.cur = logCursor{Read: g.from.UnixMilli()}
		if !s.cfg.UseFirstOptimizedRetrieval && s.cfg.StartTime != "" {
			r.cur.Streams = &logStreams{Until: time.Now().UnixMilli()}
		}
		if err := at.move(ctx, &r.cur); err != nil { // "now" must not move on with each plan
			return err
		}
	}
	if err := r.run(ctx); !errors.Is(err, errGroupGone) {
		return err
	}
	p.log.InfoContext(ctx, "a log group is gone")
	p.s.planNow()
	return nil
}

// logReader reads what is new of one group.
type logReader struct {
	*cloudWatchLogs
	*pull
	group logGroup
	at    *position
	cur   logCursor
	buf   bytes.Buffer
}

func (r *logReader) run(ctx context.Context) error {
	if r.cur.Open != nil { // left by a process that ended
		if err := r.window(ctx); err != nil || r.stopped() {
			return err
		}
	}
	if r.cur.Streams != nil {
		if err := r.streams(ctx); err != nil || r.stopped() {
			return err
		}
	}
	for last := false; !last; {
		last = r.cur.next(time.Now(), &r.cfg)
		if err := r.window(ctx); err != nil || r.stopped() {
			return err
		}
		r.reached(time.UnixMilli(r.cur.Read))
	}
	if r.cur.sweep(time.Now(), &r.cfg) {
		return r.window(ctx)
	}
	return nil
}

// streams reads stream after stream from the start time on. Those without a
// lastEventTimestamp are empty. Source: features DEV-109.
func (r *logReader) streams(ctx context.Context) error {
	in := &cloudwatchlogs.DescribeLogStreamsInput{LogGroupName: &r.group.name, OrderBy: types.OrderByLogStreamName}
	for {
		var out *cloudwatchlogs.DescribeLogStreamsOutput
		err := r.call(ctx, callLogStreams.at(r.group.region), func(ctx context.Context) (err error) {
			out, err = r.clients[r.group.region].DescribeLogStreams(ctx, in)
			return err
		})
		if err != nil {
			return err
		}
		for i := range out.LogStreams {
			st := &out.LogStreams[i]
			name := aws.ToString(st.LogStreamName)
			if name <= r.cur.Streams.After || st.LastEventTimestamp == nil ||
				*st.LastEventTimestamp+staleStreams.Milliseconds() < r.cur.Read || !r.takes(name) {
				continue
			}
			r.cur.Open = &logWindow{From: r.cur.Read, To: r.cur.Streams.Until, Began: r.cur.Streams.Until, Stream: name}
			if err := r.window(ctx); err != nil || r.stopped() {
				return err
			}
		}
		if in.NextToken = out.NextToken; in.NextToken == nil {
			break
		}
	}
	r.cur.Read = max(r.cur.Read, r.cur.Streams.Until-r.cfg.Overlap.Milliseconds())
	r.cur.Streams = nil
	return r.at.move(ctx, &r.cur)
}

func (s *cloudWatchLogs) takes(stream string) bool {
	return (len(s.cfg.LogStreams) == 0 || patterns(s.cfg.LogStreams).match(stream)) && !patterns(s.cfg.SkipLogStreams).match(stream)
}

// window reads the open window to its end, or until it has to stop.
func (r *logReader) window(ctx context.Context) error {
	w := r.cur.Open
	in := &cloudwatchlogs.FilterLogEventsInput{LogGroupName: &r.group.name, StartTime: &w.From, EndTime: &w.To}
	if r.cfg.FilterPattern != "" {
		in.FilterPattern = &r.cfg.FilterPattern
	}
	if w.Stream != "" {
		in.LogStreamNames = []string{w.Stream}
	}
	for !r.stopped() {
		in.NextToken = nil
		if w.Token != "" {
			in.NextToken = &w.Token
		}
		var out *cloudwatchlogs.FilterLogEventsOutput
		err := r.call(ctx, callLogEvents.at(r.group.region), func(ctx context.Context) (err error) {
			out, err = r.clients[r.group.region].FilterLogEvents(ctx, in)
			return err
		})
		if errors.Is(err, errPageGone) && w.Token != "" {
			w.Token, w.Pages = "", 0
			return errors.Join(err, r.at.move(ctx, &r.cur)) // the window begins again
		}
		var none *types.ResourceNotFoundException
		if errors.As(err, &none) && r.group.arn != "" {
			return errGroupGone
		}
		if err != nil {
			return err
		}
		if err := r.page(ctx, out.Events); err != nil {
			return err
		}
		w.Pages++
		w.Events += len(out.Events)
		if w.Token = aws.ToString(out.NextToken); w.Token != "" {
			if err := r.at.move(ctx, &r.cur); err != nil {
				return err
			}
			continue
		}
		quiet := w.Events == 0 && w.Pages == 1 && w.To == w.Began && time.UnixMilli(w.Began).Sub(time.UnixMilli(r.cur.Read)) < idleMove
		r.cur.end(&r.cfg)
		if quiet {
			return nil // a move for each group and minute would be much for nothing
		}
		return r.at.move(ctx, &r.cur)
	}
	return nil
}

// logDocument is the record that is made of an event. It has what the answer holds,
// under the same names, and where the event was found. Source: formats F-16.
type logDocument struct {
	LogGroup           string `json:"logGroup"`
	LogGroupIdentifier string `json:"logGroupIdentifier,omitempty"`
	LogStreamName      string `json:"logStreamName"`
	EventID            string `json:"eventId"`
	Timestamp          int64  `json:"timestamp"`
	IngestionTime      int64  `json:"ingestionTime"`
	Message            string `json:"message"`
}

// errGroupGone ends the pull of a group that was deleted.
var errGroupGone = errors.New("the log group is gone")

// whyLogStream: the event is of a stream that is not wanted.
const whyLogStream = "log_stream"

// page stores the events of an answer that are new.
func (r *logReader) page(ctx context.Context, events []types.FilteredLogEvent) error {
	pg := &page{api: callLogEvents.api, resource: r.group.name, region: r.group.region, format: r.format}
	var fresh []messages.ID
	var ends []int
	r.buf.Reset()
	enc := json.NewEncoder(&r.buf)
	enc.SetEscapeHTML(false)
	for i := range events {
		e := &events[i]
		taken := aws.ToInt64(e.IngestionTime)
		id := messages.NewID([]byte(r.pull.shard.name), []byte(aws.ToString(e.LogStreamName)), []byte(aws.ToString(e.EventId)))
		if taken < r.cur.Open.Since || r.known.has(id) {
			continue
		}
		fresh = append(fresh, id)
		stream := aws.ToString(e.LogStreamName)
		if !r.takes(stream) {
			if pg.dropped == nil {
				pg.dropped = map[string]uint64{}
			}
			pg.dropped[whyLogStream]++
			continue
		}
		if at := time.UnixMilli(taken); pg.created.IsZero() || at.Before(pg.created) {
			pg.created = at
		}
		err := enc.Encode(logDocument{
			LogGroup: r.group.name, LogGroupIdentifier: r.group.arn, LogStreamName: stream, EventID: aws.ToString(e.EventId),
			Timestamp: aws.ToInt64(e.Timestamp), IngestionTime: taken, Message: aws.ToString(e.Message),
		})
		if err != nil {
			return err // a struct of texts and numbers: it does not happen
		}
		ends = append(ends, r.buf.Len())
	}
	start := 0
	for _, end := range ends {
		pg.records = append(pg.records, r.buf.Bytes()[start:end-1]) // without the line's end
		start = end
	}
	if err := r.store(ctx, pg); err != nil {
		return err
	}
	r.known.add(fresh)
	return nil
}

// idSet remembers the last ids that it was given, at least half of most. Methods may
// be called concurrently.
type idSet struct {
	mu         sync.Mutex
	most       int
	young, old map[messages.ID]struct{}
}

func newIDSet(most int) *idSet { return &idSet{most: most, young: map[messages.ID]struct{}{}} }

func (s *idSet) has(id messages.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, young := s.young[id]
	_, old := s.old[id]
	return young || old
}

func (s *idSet) add(ids []messages.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if len(s.young) >= s.most/2 {
			s.young, s.old = map[messages.ID]struct{}{}, s.young
		}
		s.young[id] = struct{}{}
	}
}
