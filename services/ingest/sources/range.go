package sources

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"

	"github.com/penstock/penstock/messages/fault"
)

var (
	errNoRange = fault.Define("ingest.no_time_range", fault.Reject,
		"name a source that can be asked for a time range (cloudtrail_api, cloudwatch_logs, cloudwatch_metrics, guardduty), or a bucket: s3://bucket/prefix")
	errManyPieces = fault.Define("ingest.range_too_long", fault.Reject,
		"ask for a shorter time, one after the other")
)

// Ranged is a source that can be asked for a stretch of time once more, beside what it
// reads by itself.
type Ranged interface {
	Source
	// Range reads a stretch of time. It returns when all is stored, an error of r's
	// functions came, or ctx ended. Errors: ingest.no_time_range where the source cannot.
	Range(ctx context.Context, r Range) error
}

// Range is a stretch of time of an API, which is read in pieces, one after the other, in
// an order that is the same each time.
type Range struct {
	// From and To bound the times of events, To not included.
	From, To time.Time
	// Job makes the pulls those of this reading, the same when it is taken up again.
	Job string
	// After is the last piece that was done, "" to begin.
	After string
	// Plan gets the number of pieces, and what of the time is not to be had, "" for none.
	Plan func(pieces int, gone string) error
	// Wait is called before each call to the API: when it returns nil, the call is made.
	// most is the rate that leaves enough to what else reads that API. Unit: calls a
	// second.
	Wait func(ctx context.Context, most float64) error
	// Done is called after each piece; done of them are by now, with what this one had.
	Done func(piece string, done int, records, bytes uint64) error
}

// ranger is a poller that can be asked for a stretch of time.
type ranger interface {
	// pieces cuts it. Their names sort in the order in which they are read. gone says
	// what of it is not to be had.
	pieces(ctx context.Context, c *caller, from, to time.Time) (all []shard, gone string, err error)
	// piece reads one to its end, without cursors.
	piece(ctx context.Context, p *pull) error
}

var _, _, _, _ ranger = (*trail)(nil), (*cloudWatchLogs)(nil), (*cloudWatchMetrics)(nil), (*guardDutyAPI)(nil)

// maxPieces bounds the pieces of a stretch.
const maxPieces = 100_000

// again is the stretch that a caller reads once more.
type again struct {
	job  string
	wait func(ctx context.Context, most float64) error
}

// Range implements [Ranged].
func (s *polling) Range(ctx context.Context, r Range) (err error) {
	defer s.recovered(ctx, "read a time range", &err)
	kind, ok := s.kind.(ranger)
	if !ok {
		return errNoRange.New(nil, "ask source %s for a time range", s.deps.Name)
	}
	a := &again{job: r.Job, wait: r.Wait}
	c := s.caller(ctx, "")
	c.again = a
	all, gone, err := kind.pieces(ctx, c, r.From, r.To)
	if err != nil {
		return err
	}
	if len(all) > maxPieces {
		return errManyPieces.New(nil, "read source %s in %d pieces, at most %d", s.deps.Name, len(all), maxPieces)
	}
	slices.SortFunc(all, func(x, y shard) int { return strings.Compare(x.name, y.name) })
	if err := r.Plan(len(all), gone); err != nil {
		return err
	}
	for i, sh := range all {
		if sh.name <= r.After {
			continue
		}
		for attempt := 1; ; attempt++ {
			p := &pull{caller: s.caller(ctx, sh.name), shard: sh, tick: r.From}
			p.again = a
			began := time.Now()
			err := kind.piece(ctx, p)
			p.report(ctx, time.Since(began), err)
			if err == nil && p.stopped() {
				err = context.Cause(ctx)
			}
			if errors.Is(err, errPageGone) && attempt < pageRestarts {
				continue // the piece begins again; what comes twice is dropped
			}
			if err != nil {
				return err
			}
			if err := r.Done(sh.name, i+1, p.records, uint64(p.bytes)); err != nil {
				return err
			}
			break
		}
	}
	return nil
}

// pieces implements ranger: time slots of each region and category.
func (t *trail) pieces(_ context.Context, _ *caller, from, to time.Time) (all []shard, gone string, err error) { //nolint:unparam // a ranger has all three
	if bound := time.Now().Add(-trailDays + trailMargin).Truncate(time.Minute); from.Before(bound) {
		gone = "what is before " + bound.UTC().Format(time.RFC3339) + ": the event history goes back 90 days only"
		from = bound
	}
	for _, lane := range t.lanes {
		if lane.second {
			continue
		}
		for at := from; at.Before(to) && len(all) <= maxPieces; {
			end := at.Truncate(t.cfg.TimeSlot).Add(t.cfg.TimeSlot)
			if end.After(to) {
				end = to
			}
			all = append(all, shard{name: lane.name + " " + at.UTC().Format(time.RFC3339), data: trailSlot{lane: lane, from: at, to: end}})
			at = end
		}
	}
	return all, gone, nil
}

// piece implements ranger.
func (t *trail) piece(ctx context.Context, p *pull) error {
	slot := p.shard.data.(trailSlot) //nolint:forcetypeassert // pieces has put it there
	for length := slot.to.Sub(slot.from); slot.from.Before(slot.to); {
		part := slot
		if end := slot.from.Add(length); end.Before(slot.to) {
			part.to = end
		}
		err := t.lookup(ctx, p, part)
		if errors.Is(err, errPageGone) && length >= 2*time.Second {
			length = (length / 2).Truncate(time.Second) // nothing says that the next walk is faster: a shorter one is
			continue
		}
		if err != nil {
			return err
		}
		slot.from = part.to
	}
	return nil
}

func (t *trail) lookup(ctx context.Context, p *pull, slot trailSlot) error {
	for _, lookup := range t.lookups {
		if _, err := t.walk(ctx, p, slot, lookup); err != nil {
			return err
		}
	}
	return nil
}

// logPiece is how long a piece of a log group is.
const logPiece = 6 * time.Hour

// logRange is the data of a piece of a log group.
type logRange struct {
	group    logGroup
	from, to time.Time
}

// pieces implements ranger: some hours of each log group.
func (s *cloudWatchLogs) pieces(ctx context.Context, c *caller, from, to time.Time) (all []shard, _ string, err error) { //nolint:unparam // a ranger has all three
	for _, region := range s.regions {
		groups, err := s.groups(ctx, c, region, from)
		if err != nil {
			return nil, "", err
		}
		for _, g := range groups {
			for at := from; at.Before(to) && len(all) <= maxPieces; {
				end := at.Truncate(logPiece).Add(logPiece)
				if end.After(to) {
					end = to
				}
				all = append(all, shard{name: region + ":" + g.name + " " + at.UTC().Format(time.RFC3339Nano), data: logRange{g, at, end}})
				at = end
			}
		}
	}
	return all, "", nil
}

// piece implements ranger.
func (s *cloudWatchLogs) piece(ctx context.Context, p *pull) error {
	d := p.shard.data.(logRange) //nolint:forcetypeassert // pieces has put it there
	// With a memory of its own: what live reading knows is not to be pushed out.
	own := &cloudWatchLogs{cfg: s.cfg, format: s.format, clients: s.clients, known: newIDSet(0)}
	r := &logReader{cloudWatchLogs: own, pull: p, group: d.group, cur: logCursor{Open: &logWindow{}}}
	in := &cloudwatchlogs.FilterLogEventsInput{
		LogGroupName: &d.group.name, StartTime: aws.Int64(d.from.UnixMilli()), EndTime: aws.Int64(d.to.UnixMilli() - 1), // both are included
	}
	if s.cfg.FilterPattern != "" {
		in.FilterPattern = &s.cfg.FilterPattern
	}
	for !p.stopped() {
		var out *cloudwatchlogs.FilterLogEventsOutput
		err := p.call(ctx, callLogEvents.at(d.group.region), func(ctx context.Context) (err error) {
			out, err = s.clients[d.group.region].FilterLogEvents(ctx, in)
			return err
		})
		var none *types.ResourceNotFoundException
		if errors.As(err, &none) && d.group.arn != "" {
			return nil // it was deleted meanwhile
		}
		if err != nil {
			return err
		}
		if err := r.page(ctx, out.Events); err != nil {
			return err
		}
		if in.NextToken = out.NextToken; aws.ToString(in.NextToken) == "" {
			return nil
		}
	}
	return nil
}

// metricRange is the data of a piece of a namespace.
type metricRange struct {
	space  metricSpace
	window metricWindow
}

// pieces implements ranger: windows of each namespace.
func (s *cloudWatchMetrics) pieces(_ context.Context, _ *caller, from, to time.Time) (all []shard, gone string, err error) { //nolint:unparam // a ranger has all three
	period := int64(s.cfg.RequestPeriod)
	windows, lost := metricWindows(from.Unix(), min(to.Unix(), time.Now().Add(-s.cfg.Delay).Unix()), period, 0, 0)
	oldest := time.Now().Add(-metricRetention(period))
	if lost.from < lost.to || from.Before(oldest) {
		gone = "what is before " + oldest.UTC().Format(time.RFC3339) + ": CloudWatch does not keep points of this period for so long"
	}
	for _, region := range s.regions {
		for _, n := range s.cfg.MetricNamespaces {
			for _, w := range windows {
				if w.to <= oldest.Unix() {
					continue
				}
				w.from = w.fresh
				all = append(all, shard{
					name: region + ":" + n + " " + time.Unix(w.from, 0).UTC().Format(time.RFC3339), data: metricRange{metricSpace{region, n}, w},
				})
			}
		}
	}
	return all, gone, nil
}

// piece implements ranger.
func (s *cloudWatchMetrics) piece(ctx context.Context, p *pull) error {
	d := p.shard.data.(metricRange) //nolint:forcetypeassert // pieces has put it there
	// The list of the namespace, not of the piece; all metrics, also those that are silent by now.
	namespace := &pull{caller: p.caller, shard: shard{name: d.space.region + ":" + d.space.namespace}}
	list, err := s.list(ctx, namespace, d.space, false)
	if err != nil {
		return err
	}
	own := &cloudWatchMetrics{cfg: s.cfg, format: s.format, clients: s.clients, known: pointSet{most: 2}}
	r := &metricReader{cloudWatchMetrics: own, pull: p, space: d.space, list: list, again: time.Now()}
	if err := r.window(ctx, d.window); err != nil {
		return err
	}
	if r.forbidden != "" {
		return errMetricForbidden.New(nil, "read %s of %s in %s", r.forbidden, d.space.namespace, d.space.region)
	}
	return nil
}

// findingPiece is how long a piece of a detector's findings is.
const findingPiece = 24 * time.Hour

// findingRange is the data of a piece of a detector.
type findingRange struct {
	detector detector
	from, to time.Time
}

// pieces implements ranger: days of each detector, by when findings were updated last.
func (s *guardDutyAPI) pieces(ctx context.Context, c *caller, from, to time.Time) (all []shard, _ string, err error) { //nolint:unparam // a ranger has all three
	for _, region := range s.regions {
		ids, err := s.detectors(ctx, c, region)
		if err != nil {
			return nil, "", err
		}
		for _, id := range ids {
			for at := from; at.Before(to) && len(all) <= maxPieces; {
				end := at.Truncate(findingPiece).Add(findingPiece)
				if end.After(to) {
					end = to
				}
				all = append(all, shard{name: region + ":" + id + " " + at.UTC().Format(time.RFC3339Nano), data: findingRange{detector{region, id}, at, end}})
				at = end
			}
		}
	}
	return all, "", nil
}

// piece implements ranger. As in a pull, page tokens are used among findings of the same
// millisecond only.
func (s *guardDutyAPI) piece(ctx context.Context, p *pull) error {
	d := p.shard.data.(findingRange) //nolint:forcetypeassert // pieces has put it there
	own := &guardDutyAPI{cfg: s.cfg, format: s.format, clients: s.clients, known: newIDSet(4 * findingsPage)}
	since, token := d.from.UnixMilli(), ""
	for !p.stopped() {
		ids, next, err := own.ids(ctx, p, d.detector, since, d.to.UnixMilli(), token)
		if err != nil {
			return err
		}
		found, err := own.findings(ctx, p, d.detector, ids)
		if err != nil {
			return err
		}
		last := since
		for _, f := range found {
			if f.updated < d.to.UnixMilli() { // one that was updated since is live's
				last = max(last, f.updated)
			}
		}
		switch {
		case next == "":
			return nil
		case last > since:
			since, token = last, ""
		default:
			token = next
		}
	}
	return nil
}
