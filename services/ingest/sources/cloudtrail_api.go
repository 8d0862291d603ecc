package sources

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudtrail"
	"github.com/aws/aws-sdk-go-v2/service/cloudtrail/types"

	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/document"
)

func init() {
	define("cloudtrail_api", "Asks CloudTrail for its event history (LookupEvents): slow, but up to 90 days back and without a trail.",
		defaultCloudTrail, openCloudTrail)
}

// trailDays is how far back LookupEvents looks; trailMargin keeps clear of its edge.
const (
	trailDays   = 90 * 24 * time.Hour
	trailMargin = 10 * time.Minute
)

// trailCall is the operation, and trailRate its quota for an account and a region.
// Source: formats F-10.
const (
	trailCall = "cloudtrail:LookupEvents"
	trailRate = 2
	trailPage = 50
)

const (
	// openSlots is how many slots of a region may be read at the same time, or are
	// read and wait for one before them.
	openSlots = 16
	// planAgain is how soon other replicas see that a slot is done.
	planAgain = 2 * time.Second
	// trailLookups is the most event sources that are asked for one by one. With
	// more of them all events are read and the others left out.
	trailLookups = 4
)

// TrailCategory says which events are asked for.
type TrailCategory string

// The categories.
const (
	TrailManagement TrailCategory = "management"
	TrailInsight    TrailCategory = "insight"
	TrailBoth       TrailCategory = "both"
)

// Values implements config.Enum.
func (TrailCategory) Values() []string {
	return []string{string(TrailManagement), string(TrailInsight), string(TrailBoth)}
}

// CloudTrailConfig configures the cloudtrail_api source. The event history holds
// management and insight events only; data events come by way of S3.
type CloudTrailConfig struct {
	PollConfig
	// Regions whose history is read. Empty: aws.region alone.
	Regions []string `yaml:"regions"`
	// Category of events: management, insight or both.
	Category TrailCategory `yaml:"category"`
	// Sources are the services whose events are wanted, e.g. iam.amazonaws.com or
	// iam. Empty takes all. Up to four are asked for one by one; with more, all
	// events are read and the others counted as dropped.
	Sources []string `yaml:"sources"`
	// DropEventNames are names of events to leave out, e.g. AssumeRole. They are
	// counted as dropped.
	DropEventNames []string `yaml:"drop_event_names"`
	// StartTime is the time of the first event, e.g. 2026-01-05T00:00:00Z; 90 days
	// back at most. It counts when the source runs for the first time. Empty: one
	// time_slot ago.
	StartTime string `yaml:"start_time"`
	// EndTime is where another source takes over, e.g. the same trail by way of S3:
	// events from then on are not asked for. Set it an hour later than the first
	// object in the bucket: what comes by both ways is one event. Empty: without end.
	EndTime string `yaml:"end_time"`
	// GapUntilNow holds the reading back, since events become visible some minutes
	// after they have happened. Unit: duration, 0s to 24h.
	GapUntilNow time.Duration `yaml:"gap_until_now"`
	// TimeSlot is the longest stretch that is read as one piece of work. Replicas
	// share the slots. Unit: duration, 1m to 24h.
	TimeSlot time.Duration `yaml:"time_slot"`
	// SecondLook reads each slot once more when it is that old, for events that
	// became visible later than gap_until_now. What is not new is dropped as a
	// duplicate, so it must be well below dedupe.window. 0s does not. Unit: duration.
	SecondLook time.Duration `yaml:"second_look"`
	// AWS is the access to CloudTrail.
	AWS awsclient.Config `yaml:"aws"`
}

func defaultCloudTrail() CloudTrailConfig {
	return CloudTrailConfig{
		PollConfig: defaultPoll(time.Minute), Category: TrailManagement, GapUntilNow: 15 * time.Minute, TimeSlot: time.Hour, SecondLook: 3 * time.Hour,
	}
}

// Validate reports every problem, each with the key to change.
func (c CloudTrailConfig) Validate() error {
	var p config.Problems
	c.check(&p)
	p.Need(c.GapUntilNow >= 0 && c.GapUntilNow <= 24*time.Hour, "gap_until_now", "use 0s to 24h, e.g. 15m")
	p.Need(c.TimeSlot >= time.Minute && c.TimeSlot <= 24*time.Hour, "time_slot", "use 1m to 24h, e.g. 1h")
	p.Need(c.SecondLook == 0 || c.SecondLook > c.GapUntilNow && c.SecondLook <= 7*24*time.Hour, "second_look", "use 0s, or more than gap_until_now, up to 168h")
	start, startErr := instantOf(c.StartTime)
	p.Need(startErr == nil, "start_time", "write a time with its zone, e.g. 2026-01-05T00:00:00Z")
	end, endErr := instantOf(c.EndTime)
	p.Need(endErr == nil, "end_time", "write a time with its zone, e.g. 2026-01-05T00:00:00Z")
	p.Need(startErr != nil || endErr != nil || start.IsZero() || end.IsZero() || start.Before(end), "end_time", "use a time after start_time")
	seen := map[string]bool{}
	for i, r := range c.Regions {
		p.Need(regionForm(r) && !seen[r], "regions["+strconv.Itoa(i)+"]", "write the name of a region once, e.g. eu-west-1")
		seen[r] = true
	}
	for i, s := range c.Sources {
		p.Need(s != "" && len(s) < 128 && !strings.ContainsAny(s, " /"), "sources["+strconv.Itoa(i)+"]", "write a service, e.g. iam.amazonaws.com")
	}
	for i, n := range c.DropEventNames {
		p.Need(n != "", "drop_event_names["+strconv.Itoa(i)+"]", "write the name of an event, or leave the entry out")
	}
	return p.Err()
}

// instantOf reads a time of a configuration, the zero time for an empty one.
func instantOf(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	return t.UTC(), err
}

// regionForm tells whether s looks like the name of a region.
func regionForm(s string) bool {
	return s != "" && len(s) < 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// trail reads the event history. Time is cut into slots, which are shards that are
// pulled once; a cursor for each lane holds which slots are done.
//
//	lane = region and category, live or second look
//	cursor: [ ───── all stored ───── until │ slot │ done │ slot │ … ] now - gap
type trail struct {
	cfg        CloudTrailConfig
	client     func(region string) *cloudtrail.Client
	lanes      []trailLane
	start, end time.Time
	lookups    []string // event sources that are asked for one by one, "" for all
	wanted     map[string]bool
	dropNames  map[string]bool

	mu sync.Mutex
	// halved is how often a slot was made shorter because its page tokens expired
	// before its end.
	halved map[string]int
	slots  int // done in this process
	told   map[string]bool
}

// trailLane is a row of slots.
type trailLane struct {
	name     string // also that of the cursor
	region   string
	category types.EventCategory
	gap      time.Duration
	// second looks begin when the source is set up: what was older is final.
	second bool
}

// trailCursor is how far a lane is.
type trailCursor struct {
	// Until: all events before it are stored.
	Until time.Time `json:"until"`
	// Done are stretches after it that are stored too, in order.
	Done []stretch `json:"done,omitempty"`
}

// stretch is a stretch of time, its end not included.
type stretch struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

func openCloudTrail(ctx context.Context, cfg CloudTrailConfig, deps Deps) (Source, error) {
	sdk, err := pollAWS(ctx, cfg.AWS)
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", deps.Name, err)
	}
	t := &trail{cfg: cfg, halved: map[string]int{}, told: map[string]bool{}, dropNames: map[string]bool{}}
	t.start, _ = instantOf(cfg.StartTime) // Validate has looked
	t.end, _ = instantOf(cfg.EndTime)
	regions, err := regionsOf(sdk, cfg.Regions)
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", deps.Name, err)
	}
	clients := map[string]*cloudtrail.Client{}
	for _, region := range regions {
		clients[region] = cloudtrail.NewFromConfig(sdk, func(o *cloudtrail.Options) { o.Region = region })
		for _, category := range []TrailCategory{TrailManagement, TrailInsight} {
			if cfg.Category != category && cfg.Category != TrailBoth {
				continue
			}
			lane := trailLane{name: region + " " + string(category), region: region, gap: cfg.GapUntilNow}
			if category == TrailInsight {
				lane.category = types.EventCategoryInsight
			}
			t.lanes = append(t.lanes, lane)
			if cfg.SecondLook > 0 {
				lane.name, lane.gap, lane.second = lane.name+" again", cfg.SecondLook, true
				t.lanes = append(t.lanes, lane)
			}
		}
	}
	t.client = func(region string) *cloudtrail.Client { return clients[region] }
	t.lookups = []string{""}
	if len(cfg.Sources) > 0 && !slices.Contains(cfg.Sources, "all_sources") {
		var names []string
		for _, s := range cfg.Sources {
			if !strings.Contains(s, ".") {
				s += ".amazonaws.com"
			}
			names = append(names, s)
		}
		slices.Sort(names)
		names = slices.Compact(names)
		if len(names) <= trailLookups {
			t.lookups = names
		} else {
			t.wanted = map[string]bool{}
			for _, n := range names {
				t.wanted[n] = true
			}
		}
	}
	for _, n := range cfg.DropEventNames {
		t.dropNames[n] = true
	}
	return openPoller(deps, cfg.PollConfig.of(cfg.AWS), t)
}

// trailSlot is one piece of work.
type trailSlot struct {
	lane     trailLane
	from, to time.Time
}

// plan implements poller: the next slots of each lane.
func (t *trail) plan(ctx context.Context, c *caller) (plan, error) {
	var p plan
	now := time.Now()
	for _, lane := range t.lanes {
		pos, err := c.position(ctx, lane.name)
		if err != nil {
			return plan{}, err
		}
		var at trailCursor
		if err := t.prepare(ctx, c, lane, pos, &at, now); err != nil {
			return plan{}, err
		}
		end := t.until(lane, now)
		slots := t.cut(lane, at, end)
		p.shards = append(p.shards, slots...)
		t.announce(ctx, c, lane, at, end)
	}
	if len(p.shards) > 0 {
		p.again = planAgain
	}
	return p, nil
}

// prepare sets a cursor that is not there yet, and moves one that is older than the
// history goes back.
func (t *trail) prepare(ctx context.Context, c *caller, lane trailLane, pos *position, at *trailCursor, now time.Time) error {
	bound := now.Add(-trailDays + trailMargin).Truncate(time.Minute)
	return pos.update(ctx, at, func(known bool) bool {
		switch {
		case !known:
			at.Until = now.Add(-t.cfg.GapUntilNow - t.cfg.TimeSlot).Truncate(time.Minute)
			if !t.start.IsZero() && (!lane.second || t.start.After(at.Until)) {
				at.Until = t.start
			}
			if at.Until.Before(bound) { // Source: features DEV-97
				c.log.WarnContext(ctx, "the event history goes back 90 days only; older events are not to be had", "lane", lane.name,
					"start_time", at.Until, "begins", bound)
				at.Until = bound
			}
		case at.Until.Before(bound):
			c.gap(ctx, at.Until, bound, "the source was not read for so long that the event history does not go back to it")
			at.Until = bound
		default:
			return false
		}
		at.Done = nil
		return true
	})
}

// until is where a lane ends now. It moves in steps, so that all replicas see the
// same slots.
func (t *trail) until(lane trailLane, now time.Time) time.Time {
	end := now.Add(-lane.gap).Truncate(min(t.cfg.Period, t.cfg.TimeSlot))
	if lane.second { // whole slots only: there is no hurry
		end = now.Add(-lane.gap).Truncate(t.cfg.TimeSlot)
	}
	if !t.end.IsZero() && end.After(t.end) {
		end = t.end
	}
	return end
}

// cut makes slots of what is not done before end, the oldest first. They end at
// multiples of time_slot.
func (t *trail) cut(lane trailLane, at trailCursor, end time.Time) []shard {
	var slots []shard
	from := at.Until
	done := at.Done
	for from.Before(end) && len(slots)+len(done) < openSlots {
		for len(done) > 0 && !done[0].From.After(from) {
			if done[0].To.After(from) {
				from = done[0].To
			}
			done = done[1:]
		}
		to := from.Truncate(t.cfg.TimeSlot).Add(t.cfg.TimeSlot)
		if to.After(end) {
			to = end
		}
		if len(done) > 0 && done[0].From.Before(to) {
			to = done[0].From
		}
		if !from.Before(to) {
			break
		}
		// Not by its end, which moves on with the clock while the slot is read.
		slots = append(slots, shard{
			name: lane.name + " " + from.Format("2006-01-02T15:04:05Z"), once: true, data: trailSlot{lane: lane, from: from, to: to},
		})
		from = to
	}
	return slots
}

// announce logs the plan of a back-fill once. Source: features DEV-91.
func (t *trail) announce(ctx context.Context, c *caller, lane trailLane, at trailCursor, end time.Time) {
	total := 0
	if left := end.Sub(at.Until); left > 0 {
		total = int((left + t.cfg.TimeSlot - 1) / t.cfg.TimeSlot)
	}
	key := lane.name
	finished := !t.end.IsZero() && !at.Until.Before(t.end)
	if finished {
		key += " finished"
	}
	t.mu.Lock()
	told := t.told[key]
	t.told[key] = true
	t.mu.Unlock()
	switch {
	case told:
	case finished:
		c.log.InfoContext(ctx, "all is read up to end_time; the source has no more to do here", "lane", lane.name, "end_time", t.end)
	default:
		c.log.InfoContext(ctx, "time slots are planned", "lane", lane.name, "sources", t.cfg.Sources, "gap", lane.gap.String(),
			"start_date", at.Until, "end_date", end, "time_slot", t.cfg.TimeSlot.String(), "slots", total)
	}
}

// pull implements poller: it reads one slot.
func (t *trail) pull(ctx context.Context, p *pull) error {
	slot := p.shard.data.(trailSlot) //nolint:forcetypeassert // plan has put it there
	t.mu.Lock()
	halved := t.halved[p.shard.name]
	t.mu.Unlock()
	if halved > 0 {
		half := slot.to.Sub(slot.from) >> halved
		slot.to = slot.from.Add(max(time.Second, half.Truncate(time.Second)))
	}
	for _, lookup := range t.lookups {
		switch again, err := t.walk(ctx, p, slot, lookup); {
		case err == nil:
		case errors.Is(err, errPageGone) && again:
			// Nothing says that the next walk is faster: a shorter one is.
			t.mu.Lock()
			t.halved[p.shard.name]++
			t.mu.Unlock()
			return err
		default:
			return err
		}
	}
	pos, err := p.position(ctx, slot.lane.name)
	if err != nil {
		return err
	}
	var at trailCursor
	if err := pos.update(ctx, &at, func(bool) bool { return at.add(slot.from, slot.to) }); err != nil {
		return err
	}
	p.reached(at.Until)
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.halved, p.shard.name)
	if t.slots++; t.slots%100 == 0 { // Source: features DEV-91
		p.log.InfoContext(ctx, "time slots done", "slots", t.slots, "lane", slot.lane.name, "until", at.Until)
	}
	return nil
}

// add notes that a stretch is stored. Who notes it does not matter, nor how often:
// a stale owner has stored it as well as any other.
func (c *trailCursor) add(from, to time.Time) bool {
	if !to.After(c.Until) {
		return false
	}
	done := append(slices.Clone(c.Done), stretch{from, to})
	slices.SortFunc(done, func(a, b stretch) int { return cmp.Or(a.From.Compare(b.From), a.To.Compare(b.To)) })
	c.Done = nil
	for _, s := range done {
		switch last := len(c.Done) - 1; {
		case !s.From.After(c.Until):
			if s.To.After(c.Until) {
				c.Until = s.To
			}
		case last >= 0 && !s.From.After(c.Done[last].To):
			if s.To.After(c.Done[last].To) {
				c.Done[last].To = s.To
			}
		default:
			c.Done = append(c.Done, s)
		}
	}
	return true
}

// walk reads the pages of one lookup. paged tells whether it had come to a further
// page.
func (t *trail) walk(ctx context.Context, p *pull, slot trailSlot, lookup string) (paged bool, err error) {
	in := &cloudtrail.LookupEventsInput{
		StartTime: aws.Time(slot.from), MaxResults: aws.Int32(trailPage), EventCategory: slot.lane.category,
		// Both bounds are included, and event times are whole seconds.
		EndTime: aws.Time(slot.to.Add(-time.Millisecond)),
	}
	if lookup != "" {
		in.LookupAttributes = []types.LookupAttribute{{AttributeKey: types.LookupAttributeKeyEventSource, AttributeValue: aws.String(lookup)}}
	}
	resource := slot.from.Format(time.RFC3339) + "/" + slot.to.Format(time.RFC3339)
	if lookup != "" {
		resource += " " + lookup
	}
	client := t.client(slot.lane.region)
	for {
		var out *cloudtrail.LookupEventsOutput
		err := p.call(ctx, target{api: trailCall, region: slot.lane.region, rate: trailRate}, func(ctx context.Context) (err error) {
			out, err = client.LookupEvents(ctx, in)
			return err
		})
		if err != nil {
			return paged, err
		}
		pg := t.page(slot, out.Events)
		pg.resource = resource
		if err := p.store(ctx, pg); err != nil {
			return paged, err
		}
		if aws.ToString(out.NextToken) == "" {
			return paged, nil
		}
		in.NextToken, paged = out.NextToken, true
	}
}

// page takes the events out of their wrapping. Source: formats F-10.
func (t *trail) page(slot trailSlot, events []types.Event) *page {
	pg := &page{api: trailCall, region: slot.lane.region, created: slot.from, format: "cloudtrail", dropped: map[string]uint64{}}
	for i := range events {
		e := &events[i]
		rec := []byte(aws.ToString(e.CloudTrailEvent))
		pg.size += int64(len(rec))
		if len(document.Trim(rec)) == 0 {
			rec = outerRecord(e, slot.lane.region)
		}
		switch region := textOf(rec, "awsRegion"); {
		case region != "" && region != slot.lane.region: // Source: features DEV-95
			pg.dropped[whyOtherRegion]++
		case t.dropNames[aws.ToString(e.EventName)]:
			pg.dropped[whyEventName]++
		case t.wanted != nil && !t.wanted[aws.ToString(e.EventSource)]:
			pg.dropped[whyEventSource]++
		default:
			pg.records = append(pg.records, rec)
		}
	}
	return pg
}

// textOf is the text of a member of a JSON object, "" when it has none.
func textOf(doc []byte, key string) string {
	doc = document.Trim(doc)
	for c := document.Members(doc); ; {
		k, start, end, ok := c.Next()
		if !ok {
			return ""
		}
		if v := doc[start:end]; string(k) == key && document.KindOf(v) == document.String && len(v) >= 2 {
			return string(document.AppendUnquoted(nil, v[1:len(v)-1]))
		}
	}
}

// outerRecord makes a record of the outer fields, where the event itself is missing.
func outerRecord(e *types.Event, region string) []byte {
	b := []byte(`{"eventVersion":"1.11"`)
	add := func(key, value string) {
		if value != "" {
			b = document.AppendQuoted(append(document.AppendQuoted(append(b, ','), key), ':'), value)
		}
	}
	add("eventID", aws.ToString(e.EventId))
	if e.EventTime != nil {
		add("eventTime", e.EventTime.UTC().Format(time.RFC3339))
	}
	add("eventSource", aws.ToString(e.EventSource))
	add("eventName", aws.ToString(e.EventName))
	add("awsRegion", region)
	if e.Username != nil {
		b = append(b, `,"userIdentity":{"userName":`...)
		b = append(document.AppendQuoted(b, *e.Username), '}')
	}
	return append(b, '}')
}
