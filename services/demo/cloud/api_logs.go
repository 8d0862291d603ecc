package cloud

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Limits of CloudWatch Logs. Source: Amazon CloudWatch Logs API Reference,
// FilterLogEvents, DescribeLogGroups and DescribeLogStreams; formats F-16.
const (
	maxLogPage      = 10_000
	maxLogPageBytes = 1 << 20
	maxLogMessage   = 256 << 10
	maxLogNames     = 100
	maxLogList      = 50
	// logOverhead counts against the page for each event beside its message.
	logOverhead = 26
)

var logGroupName = regexp.MustCompile(`^[.\-_/#A-Za-z0-9]{1,512}$`)

// LogEvent is one event of a log stream.
type LogEvent struct {
	// Time is the event's own.
	Time time.Time
	// Ingested is when the event arrived; nobody sees it before. Zero is now. A
	// time long after Time makes a late event.
	Ingested time.Time
	Message  string
	// ID is the eventId; empty makes one.
	ID string
}

// LogPaging makes the pages of FilterLogEvents smaller than the service's own.
type LogPaging struct {
	// Events a page holds at most; 0 is 10,000.
	Events int
	// EmptyFirst answers so many empty pages with a nextToken before the first
	// that holds events. Source: formats F-16.
	EmptyFirst int
}

// logsAPI is the CloudWatch Logs of all regions.
type logsAPI struct {
	mu     sync.Mutex
	groups map[string]map[string]*logGroup // region → name
	paging LogPaging
	tokens pageTokens
	last   uint64 // of event ids
}

type logGroup struct {
	name, arn string
	created   time.Time
	streams   map[string]*logStream
	events    []logRecord // by time, then ingestion, then id
}

type logStream struct {
	name    string
	created time.Time
}

type logRecord struct {
	stream              string
	timestamp, ingested int64 // Unix ms
	id, message         string
}

func (r *logRecord) compare(o *logRecord) int {
	return cmp.Or(cmp.Compare(r.timestamp, o.timestamp), cmp.Compare(r.ingested, o.ingested), strings.Compare(r.id, o.id))
}

func init() { registerAPI(func(*Cloud) api { return &logsAPI{} }) }

// CreateLogGroup makes a log group in a region; "" is the region of the Cloud.
// A group that exists stays as it is. It fails with demo.refused.
func (c *Cloud) CreateLogGroup(region, name string) error {
	if !logGroupName.MatchString(name) {
		return errRefused.New(nil, "create log group %q", name)
	}
	s := apiOf[*logsAPI](c)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.group(c.regionOr(region), name)
	c.changed.fire()
	return nil
}

// DeleteLogGroup removes a log group with all that is in it.
func (c *Cloud) DeleteLogGroup(region, name string) {
	s := apiOf[*logsAPI](c)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.groups[c.regionOr(region)], name)
	c.changed.fire()
}

// CreateLogStream makes a stream, and its group, without any event: it has no
// lastEventTimestamp.
func (c *Cloud) CreateLogStream(region, group, stream string) error {
	return c.PutLogEvents(region, group, stream)
}

// PutLogEvents adds events, in any order, to a stream that is made if it is not
// there. Unlike the service it takes events of any age. It fails with demo.refused.
func (c *Cloud) PutLogEvents(region, group, stream string, events ...LogEvent) error {
	if !logGroupName.MatchString(group) || stream == "" || len(stream) > 512 || strings.ContainsAny(stream, ":*") {
		return errRefused.New(nil, "put events into stream %q of log group %q", stream, group)
	}
	for i := range events {
		if events[i].Message == "" || len(events[i].Message) > maxLogMessage {
			return errRefused.New(nil, "put event %d of %d bytes into log group %q", i, len(events[i].Message), group)
		}
	}
	s := apiOf[*logsAPI](c)
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.group(c.regionOr(region), group)
	if g.streams[stream] == nil {
		g.streams[stream] = &logStream{name: stream, created: time.Now()}
	}
	for _, e := range events {
		if e.Ingested.IsZero() {
			e.Ingested = time.Now()
		}
		if e.ID == "" {
			s.last++
			// As long as the real ones, and like them in the order of time.
			e.ID = fmt.Sprintf("%029d%027d", e.Time.UnixMilli(), s.last)
		}
		g.events = append(g.events, logRecord{
			stream: stream, timestamp: e.Time.UnixMilli(), ingested: e.Ingested.UnixMilli(), id: e.ID, message: e.Message,
		})
	}
	slices.SortStableFunc(g.events, func(a, b logRecord) int { return a.compare(&b) })
	c.changed.fire()
	return nil
}

// SetLogPaging changes how FilterLogEvents cuts its pages.
func (c *Cloud) SetLogPaging(p LogPaging) {
	s := apiOf[*logsAPI](c)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paging = p
}

func (s *logsAPI) group(region, name string) *logGroup {
	if s.groups == nil {
		s.groups = map[string]map[string]*logGroup{}
	}
	if s.groups[region] == nil {
		s.groups[region] = map[string]*logGroup{}
	}
	g := s.groups[region][name]
	if g == nil {
		g = &logGroup{
			name: name, arn: "arn:aws:logs:" + region + ":" + AccountID + ":log-group:" + name,
			created: time.Now(), streams: map[string]*logStream{},
		}
		s.groups[region][name] = g
	}
	return g
}

// logRequest holds the parameters of every operation.
type logRequest struct {
	LogGroupName        string   `json:"logGroupName"`
	LogGroupIdentifier  string   `json:"logGroupIdentifier"`
	LogGroupNamePrefix  string   `json:"logGroupNamePrefix"`
	LogGroupNamePattern string   `json:"logGroupNamePattern"`
	LogStreamNames      []string `json:"logStreamNames"`
	LogStreamNamePrefix string   `json:"logStreamNamePrefix"`
	OrderBy             string   `json:"orderBy"`
	Descending          bool     `json:"descending"`
	FilterPattern       string   `json:"filterPattern"`
	StartTime           *int64   `json:"startTime"`
	EndTime             *int64   `json:"endTime"`
	Limit               *int     `json:"limit"`
	NextToken           string   `json:"nextToken"`
	// Interleaved is ignored, as the service does.
	Interleaved *bool `json:"interleaved"`
	Unmask      bool  `json:"unmask"`
}

// name is the group that the request asks for; it may be given by its ARN.
func (r *logRequest) name() string {
	if _, name, arn := strings.Cut(r.LogGroupIdentifier, ":log-group:"); arn {
		return strings.TrimSuffix(name, ":*")
	}
	return cmp.Or(r.LogGroupIdentifier, r.LogGroupName)
}

func logInvalid(format string, args ...any) *apiError {
	return &apiError{status: http.StatusBadRequest, code: "InvalidParameterException", message: fmt.Sprintf(format, args...)}
}

var errLogToken = &apiError{status: http.StatusBadRequest, code: "InvalidParameterException", message: "The specified nextToken is invalid."}

func errLogMissing(what string) *apiError {
	return &apiError{status: http.StatusBadRequest, code: "ResourceNotFoundException", message: "The specified log " + what + " does not exist."}
}

// operation implements api.
func (s *logsAPI) operation(r *http.Request) string {
	op, _ := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "Logs_20140328.")
	if op == r.Header.Get("X-Amz-Target") {
		return ""
	}
	return op
}

func (s *logsAPI) scope() string { return "logs" }

// about implements apiNamer.
func (s *logsAPI) about(call *apiCall) string {
	var r logRequest
	_ = json.Unmarshal(call.body, &r) // serve reports what is wrong with it
	return r.name()
}

// serve implements api.
func (s *logsAPI) serve(_ context.Context, call *apiCall) (any, *apiError) {
	r, region := &logRequest{}, call.region
	if e := call.decode(r); e != nil {
		return nil, e
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch call.op {
	case "DescribeLogGroups":
		return s.describeGroups(region, r)
	case "DescribeLogStreams":
		return s.describeStreams(region, r)
	case "FilterLogEvents":
		return s.filter(region, r)
	}
	return nil, &apiError{status: http.StatusBadRequest, code: "UnknownOperationException", message: "This endpoint does not implement " + call.op + "."}
}

// limitOf checks a page size.
func (r *logRequest) limitOf(most int) (int, *apiError) {
	if r.Limit == nil {
		return most, nil
	}
	if *r.Limit < 1 || *r.Limit > most {
		return 0, logInvalid("1 validation error detected: Value '%d' at 'limit' failed to satisfy constraint: Member must have value between 1 and %d", *r.Limit, most)
	}
	return *r.Limit, nil
}

func (s *logsAPI) describeGroups(region string, r *logRequest) (any, *apiError) {
	limit, e := r.limitOf(maxLogList)
	if e != nil {
		return nil, e
	}
	if r.LogGroupNamePrefix != "" && r.LogGroupNamePattern != "" {
		return nil, logInvalid("LogGroupNamePrefix and LogGroupNamePattern are mutually exclusive parameters.")
	}
	var names []string
	for name := range s.groups[region] {
		if strings.HasPrefix(name, r.LogGroupNamePrefix) && strings.Contains(name, r.LogGroupNamePattern) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	of := "groups " + region + " " + r.LogGroupNamePrefix + " " + r.LogGroupNamePattern
	names, token, e := nextPage(&s.tokens, of, r.NextToken, names, limit, errLogToken)
	if e != nil {
		return nil, e
	}
	list := []map[string]any{}
	for _, name := range names {
		g := s.groups[region][name]
		size := 0
		for i := range g.events {
			size += len(g.events[i].message) + logOverhead
		}
		list = append(list, map[string]any{
			"logGroupName": name, "arn": g.arn + ":*", "logGroupArn": g.arn, "creationTime": g.created.UnixMilli(),
			"storedBytes": size, "metricFilterCount": 0, "logGroupClass": "STANDARD",
		})
	}
	return withToken(map[string]any{"logGroups": list}, "nextToken", token), nil
}

// find returns the group that r names.
func (s *logsAPI) find(region string, r *logRequest) (*logGroup, *apiError) {
	if (r.LogGroupName == "") == (r.LogGroupIdentifier == "") {
		return nil, logInvalid("Exactly one of logGroupName and logGroupIdentifier has to be given.")
	}
	name := r.name()
	if !logGroupName.MatchString(name) {
		return nil, logInvalid("1 validation error detected: Value at 'logGroupName' failed to satisfy constraint: Member must satisfy regular expression pattern: [\\.\\-_/#A-Za-z0-9]+")
	}
	g := s.groups[region][name]
	if g == nil {
		return nil, errLogMissing("group")
	}
	return g, nil
}

// seen is the span of a stream's visible events.
type seen struct {
	n                  int
	first, last, taken int64 // Unix ms
}

func (g *logGroup) visible(now int64) map[string]*seen {
	spans := map[string]*seen{}
	for i := range g.events {
		e := &g.events[i]
		if e.ingested > now {
			continue
		}
		v := spans[e.stream]
		if v == nil {
			v = &seen{first: e.timestamp, last: e.timestamp, taken: e.ingested}
			spans[e.stream] = v
		}
		v.n++
		v.first, v.last, v.taken = min(v.first, e.timestamp), max(v.last, e.timestamp), max(v.taken, e.ingested)
	}
	return spans
}

func (s *logsAPI) describeStreams(region string, r *logRequest) (any, *apiError) {
	limit, e := r.limitOf(maxLogList)
	if e != nil {
		return nil, e
	}
	if r.OrderBy != "" && r.OrderBy != "LogStreamName" && r.OrderBy != "LastEventTime" {
		return nil, logInvalid("1 validation error detected: Value '%s' at 'orderBy' failed to satisfy constraint: Member must satisfy enum value set: [LogStreamName, LastEventTime]", r.OrderBy)
	}
	if r.OrderBy == "LastEventTime" && r.LogStreamNamePrefix != "" {
		return nil, logInvalid("Cannot order by LastEventTime with a logStreamNamePrefix.")
	}
	g, e := s.find(region, r)
	if e != nil {
		return nil, e
	}
	spans := g.visible(time.Now().UnixMilli())
	var names []string
	for name := range g.streams {
		if strings.HasPrefix(name, r.LogStreamNamePrefix) {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		if r.OrderBy == "LastEventTime" {
			var ta, tb int64
			if v := spans[a]; v != nil {
				ta = v.last
			}
			if v := spans[b]; v != nil {
				tb = v.last
			}
			if ta != tb {
				return cmp.Compare(ta, tb)
			}
		}
		return strings.Compare(a, b)
	})
	if r.Descending {
		slices.Reverse(names)
	}
	of := fmt.Sprint("streams ", region, g.name, r.OrderBy, r.Descending, r.LogStreamNamePrefix)
	names, token, e := nextPage(&s.tokens, of, r.NextToken, names, limit, errLogToken)
	if e != nil {
		return nil, e
	}
	list := []map[string]any{}
	for _, name := range names {
		m := map[string]any{
			"logStreamName": name, "arn": g.arn + ":log-stream:" + name, "creationTime": g.streams[name].created.UnixMilli(), "storedBytes": 0,
		}
		// A stream that never got an event has none of these. Source: features DEV-109.
		if v := spans[name]; v != nil {
			m["firstEventTimestamp"], m["lastEventTimestamp"], m["lastIngestionTime"] = v.first, v.last, v.taken
		}
		list = append(list, m)
	}
	return withToken(map[string]any{"logStreams": list}, "nextToken", token), nil
}

// span returns the bounds of the time range, both inclusive.
func (r *logRequest) span() (from, to int64, e *apiError) {
	to = int64(1) << 62
	if r.StartTime != nil {
		from = *r.StartTime
	}
	if r.EndTime != nil {
		to = *r.EndTime
	}
	if from < 0 || to < 0 {
		return 0, 0, logInvalid("1 validation error detected: startTime and endTime must have value greater than or equal to 0")
	}
	if from > to {
		return 0, 0, logInvalid("endTime has to be the same as or after startTime")
	}
	return from, to, nil
}

func (s *logsAPI) filter(region string, r *logRequest) (any, *apiError) {
	limit, e := r.limitOf(maxLogPage)
	if e != nil {
		return nil, e
	}
	from, to, e := r.span()
	if e != nil {
		return nil, e
	}
	switch {
	case len(r.LogStreamNames) > 0 && r.LogStreamNamePrefix != "":
		return nil, logInvalid("LogStreamNamePrefix and LogStreamNames cannot be specified together.")
	case len(r.LogStreamNames) > maxLogNames:
		return nil, logInvalid("1 validation error detected: 'logStreamNames' must have length less than or equal to %d", maxLogNames)
	case len(r.FilterPattern) > 1024:
		return nil, logInvalid("1 validation error detected: 'filterPattern' must have length less than or equal to 1024")
	case strings.ContainsAny(r.FilterPattern, `"{}[]%?*`):
		return nil, &apiError{status: http.StatusBadRequest, code: "UnknownOperationException", message: "This endpoint knows filter patterns of plain words only."}
	}
	g, e := s.find(region, r)
	if e != nil {
		return nil, e
	}
	for _, name := range r.LogStreamNames {
		if g.streams[name] == nil {
			return nil, errLogMissing("stream")
		}
	}
	of := fmt.Sprint("filter ", region, g.name, r.LogStreamNames, r.LogStreamNamePrefix, r.FilterPattern, from, to)
	position, e := s.tokens.open(of, r.NextToken, errLogToken)
	if e != nil {
		return nil, e
	}
	if r.NextToken == "" && s.paging.EmptyFirst > 0 {
		position = strconv.Itoa(s.paging.EmptyFirst)
	}
	if left, err := strconv.Atoi(position); err == nil && left > 0 {
		next := strconv.Itoa(left - 1)
		return map[string]any{"events": []any{}, "searchedLogStreams": []any{}, "nextToken": s.tokens.issue(of, next)}, nil
	}
	words := strings.Fields(r.FilterPattern)
	events, more := s.cut(g, limit, position, func(e *logRecord) bool {
		if e.timestamp < from || e.timestamp > to || !strings.HasPrefix(e.stream, r.LogStreamNamePrefix) ||
			len(r.LogStreamNames) > 0 && !slices.Contains(r.LogStreamNames, e.stream) {
			return false
		}
		return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(e.message, w) })
	})
	list := []map[string]any{}
	for _, e := range events {
		list = append(list, map[string]any{
			"eventId": e.id, "logStreamName": e.stream, "timestamp": e.timestamp, "ingestionTime": e.ingested, "message": e.message,
		})
	}
	token := ""
	if more != "" {
		token = s.tokens.issue(of, more)
	}
	return withToken(map[string]any{"events": list, "searchedLogStreams": []any{}}, "nextToken", token), nil
}

// cut returns the visible events behind a position that match, as many as a page
// holds, and the position of the next page; "" for none. A position is the last
// event of the page before, so what arrives in front of it is not seen: such an
// event is late.
func (s *logsAPI) cut(g *logGroup, limit int, position string, match func(*logRecord) bool) (events []*logRecord, more string) {
	if s.paging.Events > 0 {
		limit = min(limit, s.paging.Events)
	}
	var after *logRecord
	if position != "" && position != "0" {
		after = &logRecord{}
		parts := strings.SplitN(position, "/", 3)
		after.timestamp, _ = strconv.ParseInt(parts[0], 10, 64) // our own token
		after.ingested, _ = strconv.ParseInt(parts[1], 10, 64)
		after.id = parts[2]
	}
	now, size := time.Now().UnixMilli(), 0
	for i := range g.events {
		e := &g.events[i]
		if e.ingested > now || after != nil && e.compare(after) <= 0 || !match(e) {
			continue
		}
		size += len(e.message) + logOverhead
		if n := len(events); n > 0 && (n == limit || size > maxLogPageBytes) {
			last := events[n-1]
			return events, fmt.Sprintf("%d/%d/%s", last.timestamp, last.ingested, last.id)
		}
		events = append(events, e)
	}
	return events, ""
}
