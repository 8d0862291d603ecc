package cloud

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

func init() {
	registerAPI(func(c *Cloud) api { return &EventHistory{cloud: c, regions: map[string][]TrailEvent{}} })
}

// trailDays is how far back LookupEvents looks.
const trailDays = 90

// trailPage is the most events of one answer, and the default.
const trailPage = 50

// EventHistory is that of the account in CloudTrail: LookupEvents; and the keys that its
// trails sign with: ListPublicKeys.
// Source: AWS CloudTrail API Reference, LookupEvents, ListPublicKeys; formats F-10.
type EventHistory struct {
	cloud *Cloud

	mu      sync.Mutex
	regions map[string][]TrailEvent
	// epoch is in each page token: one of an earlier epoch has expired.
	epoch int
	// rate of requests a second and region, 0 for no limit; next is when a region
	// takes the next.
	rate float64
	next map[string]time.Time
	// most is what an answer holds at most, 0 for 50.
	most int
	// keys are those that digest files were signed with.
	keys []trailKey
	// windows are the spans that were asked for, first pages only.
	windows []TrailWindow
}

// TrailWindow is what a walk over pages was asked for.
type TrailWindow struct {
	Region     string
	Start, End time.Time
	Attribute  string // "name=value", empty for none
	Insight    bool
}

// TrailEvent is one event of the history.
type TrailEvent struct {
	ID, Name, Source, Username, AccessKeyID string
	Time                                    time.Time
	ReadOnly                                bool
	// Insight puts it into the category of insights.
	Insight bool
	// Record is the CloudTrailEvent, a JSON text. Empty makes one of the fields;
	// "-" leaves it out.
	Record string
	// Region in the record that is made; empty is that of the history.
	Region string
}

// CloudTrail is the event history of the account.
func (c *Cloud) CloudTrail() *EventHistory { return apiOf[*EventHistory](c) }

// Add puts events into the history of a region.
func (t *EventHistory) Add(region string, events ...TrailEvent) {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := append(t.regions[region], events...)
	// Newest first, as the API gives them.
	slices.SortStableFunc(list, func(a, b TrailEvent) int {
		return cmp.Or(b.Time.Compare(a.Time), strings.Compare(a.ID, b.ID))
	})
	t.regions[region] = list
}

// ExpireTokens ends all page tokens that were given out.
func (t *EventHistory) ExpireTokens() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.epoch++
}

// Limit has more than rate requests a second and region throttled; 0 ends that.
func (t *EventHistory) Limit(rate float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rate, t.next = rate, map[string]time.Time{}
}

// PageSize bounds the events of one answer below what is asked for; 0 ends that.
func (t *EventHistory) PageSize(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.most = n
}

// Windows returns what was asked for, in order, without the further pages.
func (t *EventHistory) Windows() []TrailWindow {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.windows)
}

func (t *EventHistory) scope() string { return "cloudtrail" }

func (t *EventHistory) operation(r *http.Request) string {
	target := r.Header.Get("X-Amz-Target")
	op, ok := strings.CutPrefix(target, "CloudTrail_20131101.")
	if !ok {
		op, ok = strings.CutPrefix(target, "com.amazonaws.cloudtrail.v20131101.CloudTrail_20131101.")
	}
	if !ok {
		return ""
	}
	return op
}

// lookup is a LookupEvents request.
type lookup struct {
	StartTime, EndTime *float64
	LookupAttributes   []struct{ AttributeKey, AttributeValue string }
	EventCategory      string
	MaxResults         *int
	NextToken          string
}

type trailAnswer struct {
	Events    []trailEntry
	NextToken string `json:",omitempty"`
}

type trailEntry struct {
	EventID         string `json:"EventId"`
	EventName       string
	ReadOnly        string
	AccessKeyID     string `json:"AccessKeyId,omitempty"`
	EventTime       float64
	EventSource     string
	Username        string   `json:",omitempty"`
	Resources       []string // none is made up
	CloudTrailEvent string   `json:",omitempty"`
}

func (t *EventHistory) serve(_ context.Context, call *apiCall) (any, *apiError) {
	bad := func(code, message string) (any, *apiError) {
		return nil, &apiError{status: http.StatusBadRequest, code: code, message: message}
	}
	switch call.op {
	case "LookupEvents":
	case "ListPublicKeys":
		return t.listKeys(call)
	default:
		return bad("UnsupportedOperationException", "The emulated CloudTrail knows LookupEvents and ListPublicKeys only.")
	}
	var req lookup
	if e := call.decode(&req); e != nil {
		return nil, e
	}
	size := trailPage
	if req.MaxResults != nil {
		if size = *req.MaxResults; size < 1 || size > trailPage {
			return bad("InvalidMaxResultsException", "A maximum results value of 1 to 50 must be specified.")
		}
	}
	if req.EventCategory != "" && req.EventCategory != "insight" {
		return bad("InvalidEventCategoryException", "The event category is not valid.")
	}
	if len(req.LookupAttributes) > 1 {
		return bad("InvalidLookupAttributesException", "Only one lookup attribute may be specified.")
	}
	now := time.Now()
	w := TrailWindow{Region: call.region, Start: now.AddDate(0, 0, -trailDays), End: now, Insight: req.EventCategory == "insight"}
	for i, at := range []*float64{req.StartTime, req.EndTime} {
		if at != nil {
			*[]*time.Time{&w.Start, &w.End}[i] = time.UnixMilli(int64(math.Round(*at * 1000))).UTC()
		}
	}
	if w.Start.After(w.End) || w.Start.Before(now.AddDate(0, 0, -trailDays).Add(-time.Minute)) {
		return bad("InvalidTimeRangeException", "The time range is not valid: it ends before it begins, or begins more than 90 days ago.")
	}
	match := func(TrailEvent) bool { return true }
	for _, a := range req.LookupAttributes {
		value := map[string]func(TrailEvent) string{
			"EventId": func(e TrailEvent) string { return e.ID }, "EventName": func(e TrailEvent) string { return e.Name },
			"EventSource": func(e TrailEvent) string { return e.Source }, "Username": func(e TrailEvent) string { return e.Username },
			"AccessKeyId": func(e TrailEvent) string { return e.AccessKeyID }, "ReadOnly": func(e TrailEvent) string { return strconv.FormatBool(e.ReadOnly) },
		}[a.AttributeKey]
		if value == nil || a.AttributeValue == "" {
			return bad("InvalidLookupAttributesException", "The lookup attribute is not valid.")
		}
		match = func(e TrailEvent) bool { return value(e) == a.AttributeValue }
		w.Attribute = a.AttributeKey + "=" + a.AttributeValue
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rate > 0 {
		if now.Before(t.next[call.region]) {
			return bad("ThrottlingException", "Rate exceeded")
		}
		t.next[call.region] = now.Add(time.Duration(float64(time.Second) / t.rate))
	}
	if t.most > 0 {
		size = min(size, t.most)
	}
	skip, e := t.position(req.NextToken, w)
	if e != nil {
		return nil, e
	}
	if req.NextToken == "" {
		t.windows = append(t.windows, w)
	}
	return t.page(w, match, skip, size), nil
}

// trailToken is a page token: where the walk is, and what it asks for, since it
// goes with the same parameters only.
type trailToken struct {
	Skip, Epoch int
	Window      TrailWindow
}

// position reads a page token.
func (t *EventHistory) position(token string, w TrailWindow) (int, *apiError) {
	if token == "" {
		return 0, nil
	}
	var at trailToken
	text, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || json.Unmarshal(text, &at) != nil || at.Window != w {
		return 0, &apiError{status: http.StatusBadRequest, code: "InvalidNextTokenException", message: "The token is not valid, or was used with other parameters."}
	}
	if at.Epoch != t.epoch {
		return 0, &apiError{status: http.StatusBadRequest, code: "InvalidNextTokenException", message: "The token has expired."}
	}
	return at.Skip, nil
}

// page collects one answer. t.mu is held.
func (t *EventHistory) page(w TrailWindow, match func(TrailEvent) bool, skip, size int) trailAnswer {
	answer := trailAnswer{Events: []trailEntry{}}
	n := 0
	for _, e := range t.regions[w.Region] {
		if e.Insight != w.Insight || e.Time.Before(w.Start) || e.Time.After(w.End) || !match(e) {
			continue
		}
		if n++; n <= skip {
			continue
		}
		if len(answer.Events) == size {
			text := encode(trailToken{Skip: skip + size, Epoch: t.epoch, Window: w})
			answer.NextToken = base64.RawURLEncoding.EncodeToString(text)
			break
		}
		answer.Events = append(answer.Events, trailEntry{
			EventID: e.ID, EventName: e.Name, ReadOnly: strconv.FormatBool(e.ReadOnly), AccessKeyID: e.AccessKeyID,
			EventTime: float64(e.Time.UnixMilli()) / 1000, EventSource: e.Source, Username: e.Username, Resources: []string{},
			CloudTrailEvent: e.record(w.Region),
		})
	}
	return answer
}

// record is the CloudTrailEvent of e.
func (e TrailEvent) record(region string) string {
	switch e.Record {
	case "-":
		return ""
	case "":
	default:
		return e.Record
	}
	category := "Management"
	if e.Insight {
		category = "Insight"
	}
	return string(encode(map[string]any{
		"eventVersion": "1.11", "eventID": e.ID, "eventName": e.Name, "eventSource": e.Source, "eventTime": e.Time.UTC().Format(time.RFC3339),
		"awsRegion": cmp.Or(e.Region, region), "recipientAccountId": AccountID, "readOnly": e.ReadOnly, "eventCategory": category,
		"eventType": "AwsApiCall", "userIdentity": map[string]string{"type": "IAMUser", "userName": e.Username, "accountId": AccountID},
	}))
}
