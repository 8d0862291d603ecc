package books

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/ledger"
	"github.com/penstock/penstock/services/operate/eventlog"
	"github.com/penstock/penstock/topology"
)

// maxJourney bounds the pulls of a journey: the latest ones, and those that repeat them.
const maxJourney = 20

// Trace follows what has a name over all stages: an object, a message, a pull, or an event
// by its id, for which it searches the event log in a span (newest first as the log
// allows; progress may be nil). r may be nil: then only where an event is can be told.
// Errors: books.unknown, eventlog.gone.
func Trace(ctx context.Context, bus *topology.Bus, r Reader, what string, span jobs.Span, progress Progress) (Journey, error) {
	j, err := r.Trace(ctx, what)
	if !errors.Is(err, ErrUnknown) || !isID(what) {
		return j, err
	}
	e, err := eventlog.New(bus).ByID(ctx, strings.ToLower(what), span, progress)
	if err != nil {
		return j, err
	}
	j = Journey{What: what, Kind: "event", Event: &Event{
		ID: e.ID, Type: e.Type, Source: e.Source, Time: e.Time, Stored: e.Stored, Sequence: e.Place.Sequence, Index: e.Place.Index, Record: e.Record, Replay: e.Replay,
	}}
	if j.Event.Settled, err = r.Settled(ctx, e.Type, e.Place.Sequence); err != nil {
		return j, err
	}
	t, err := r.Pull(ctx, hex.EncodeToString(e.Origin.GetPull()))
	if err == nil {
		j.Pulls = []Trail{t}
	} else if errors.Is(err, ErrUnknown) { // older than the books: where it is can be told all the same
		err = nil
	}
	return j, err
}

// isID tells whether s looks like the id of a pull or of an event.
func isID(s string) bool {
	raw, err := hex.DecodeString(s)
	return err == nil && len(raw) == len(messages.ID{})
}

// Trace implements [Reader].
func (b *Books) Trace(ctx context.Context, what string) (j Journey, err error) {
	j = Journey{What: what, Pulls: []Trail{}}
	err = b.look(ctx, "a journey", func(v *view) error {
		var all []found
		var err error
		if address, ok := strings.CutPrefix(what, "s3://"); ok {
			j.Kind = "object"
			all, err = v.address(address)
		} else if isID(what) {
			j.Kind = "pull"
			var one found
			one, err = v.onePull(strings.ToLower(what))
			all = []found{one}
		} else {
			j.Kind = "message"
			all, err = v.message(strings.TrimPrefix(what, "message "))
		}
		if err != nil {
			return err
		}
		if len(all) == 0 {
			return ErrUnknown.New(nil, "follow the %s %.300q", j.Kind, what)
		}
		if len(all) > maxJourney {
			j.More, all = true, all[:maxJourney]
		}
		for _, f := range slices.Clone(all) { // what was done with them again
			repeats, err := v.repeats(f.pull.Pull)
			if err != nil {
				return err
			}
			for _, r := range repeats {
				if !slices.ContainsFunc(all, func(f found) bool { return f.row == r.row }) {
					all = append(all, r)
				}
			}
		}
		slices.SortFunc(all, func(x, y found) int { // what repeats another comes after it
			return cmp.Or(x.pull.First.Compare(y.pull.First), strings.Compare(x.pull.Again, y.pull.Again), cmp.Compare(x.row, y.row))
		})
		for _, f := range all {
			t, err := v.trail(f)
			if err != nil {
				return err
			}
			j.Pulls = append(j.Pulls, t)
		}
		return nil
	})
	return j, err
}

// address finds an object by bucket/key, perhaps with ?versionId=.
func (v *view) address(address string) ([]found, error) {
	bucket, key, _ := strings.Cut(address, "/")
	all, err := v.object(bucket, key, maxJourney+1)
	if err != nil || len(all) > 0 {
		return all, err
	}
	plain, version, ok := strings.Cut(key, "?versionId=")
	if !ok {
		return nil, nil
	}
	all, err = v.object(bucket, plain, maxObject)
	return slices.DeleteFunc(all, func(f found) bool { return f.origin.GetVersion() != version }), err
}

// findMessage finds the rows of messages by their hashes.
const findMessage = "SELECT row FROM pulls WHERE first > 0 AND message = ? LIMIT ?"

// message finds what an upstream message announced, or had in its body.
func (v *view) message(id string) ([]found, error) {
	all, err := v.pulls("SELECT row, pull, data FROM pulls WHERE row IN ("+findMessage+") ORDER BY row DESC", hash(id), maxJourney+1)
	all = slices.DeleteFunc(all, func(f found) bool { return f.origin.GetMessageId() != id })
	uuid, ok := messages.ParseUUID(id)
	if err != nil || len(all) > 0 || !ok {
		return all, err
	}
	// One of several in a pull: there is no index, for each would be a row.
	var rows []int64
	err = each(v.ctx, v.tx, "SELECT row, ids FROM messages WHERE instr(ids, ?) > 0 ORDER BY row DESC LIMIT ?", func(r *sql.Rows) error {
		var row int64
		var ids []byte
		err := r.Scan(&row, &ids)
		for ; len(ids) >= len(uuid); ids = ids[len(uuid):] {
			if messages.UUID(ids[:len(uuid)]) == uuid {
				rows = append(rows, row)
				break
			}
		}
		return err
	}, uuid[:], maxJourney+1)
	for _, row := range rows {
		more, readErr := v.pulls("SELECT row, pull, data FROM pulls WHERE row = ?", row)
		all, err = append(all, more...), errors.Join(err, readErr)
	}
	return all, err
}

// repeats are the pulls that repeat one.
func (v *view) repeats(pull string) ([]found, error) {
	raw, err := hex.DecodeString(pull)
	if err != nil {
		return nil, nil //nolint:nilerr // it is ours
	}
	return v.pulls("SELECT row, pull, data FROM pulls WHERE again = ? ORDER BY row LIMIT ?", raw, maxJourney)
}

// trail tells a pull's journey.
func (v *view) trail(f found) (Trail, error) {
	t := Trail{Pull: f.pull}
	p := &t.Pull
	at := map[string]ledger.Times{}
	for _, s := range p.Stages {
		at[s.Stage] = s
	}
	add := func(stage string, problem bool, format string, args ...any) {
		t.Steps = append(t.Steps, Step{Stage: stage, At: at[stage].First, Until: at[stage].Last, What: fmt.Sprintf(format, args...), Problem: problem})
	}
	if p.As != "" {
		add("ingest", p.As == "quarantined", "%s", announcedAs(p, f.origin))
	}
	switch p.End {
	case "":
	case "skipped":
		add("fetch", false, "skipped: %s", p.Code)
	case "quarantined":
		add("fetch", true, "quarantined: %s", p.Code)
	default:
		add("fetch", p.End == "truncated", "%s: %s in %s, %d bytes as stored, %d unpacked%s", p.End, count(p.Records, "record"), count(uint64(p.Frames), "frame"),
			p.Bytes, p.RawBytes, reason(p.Code))
	}
	if p.ParsedFrames > 0 {
		add("parse", len(p.Quarantined) > 0, "%s of %s became %s%s%s", count(uint64(p.ParsedFrames), "frame"), count(p.Records, "record"), count(p.Events, "event"),
			byCode("; skipped", p.Skipped), byCode("; quarantined", p.Quarantined))
	} else if len(p.Quarantined) > 0 {
		add("parse", true, "%s", strings.TrimPrefix(byCode("; quarantined", p.Quarantined), "; "))
	}
	if p.Unique+p.Duplicates > 0 {
		add("route", p.Twice > 0, "%s unique, %d duplicates%s; %s entered the event log", count(p.Unique, "event"), p.Duplicates, byCode("; dropped", p.Dropped), count(p.Logged, "event"))
	}
	for i := range p.Destinations {
		t.Steps = append(t.Steps, delivered(&p.Destinations[i]))
	}
	for i := range p.Replays {
		s := delivered(&p.Replays[i])
		s.What += " (replay " + p.Replays[i].Replay + ")"
		t.Steps = append(t.Steps, s)
	}
	for _, r := range p.Resolved {
		if r.Redriven > 0 {
			t.Steps = append(t.Steps, Step{Stage: r.Stage, Destination: r.Destination, What: fmt.Sprintf("redriven: %s of %s", count(r.Redriven, "record"), r.Code)})
		}
		if r.Discarded > 0 {
			t.Steps = append(t.Steps, Step{Stage: r.Stage, Destination: r.Destination, What: fmt.Sprintf("discarded: %s of %s", count(r.Discarded, "record"), r.Code)})
		}
	}
	repeats, err := v.repeats(p.Pull)
	for _, r := range repeats {
		t.Steps = append(t.Steps, Step{Stage: "again", At: r.pull.First, What: "as pull " + r.pull.Pull + " by job " + r.pull.Job})
	}
	for _, problem := range p.Problems {
		t.Steps = append(t.Steps, Step{Stage: "balance", At: p.Since, What: problem, Problem: true})
	}
	return t, err
}

// announcedAs says how a pull came to be.
func announcedAs(p *ledger.Pull, o *messages.Origin) string {
	what := "announced as " + p.As + reason(p.Code)
	switch {
	case p.Again != "":
		what = "pull " + p.Again + " again, by job " + p.Job
		if p.Only != "" {
			what += " for " + p.Only + " alone"
		}
	case o.GetQueue() != "" && o.GetMessageId() != "":
		what += " by message " + o.GetMessageId() + " of " + o.GetQueue()
	case o.GetQueue() != "":
		what += " by " + o.GetQueue()
	case o.GetApi() != "":
		what += " by " + strings.TrimSpace(o.GetApi()+" "+o.GetResource())
	}
	if o.GetCreated() != 0 {
		what += ", made " + timeOf(o.GetCreated()).Format(time.RFC3339)
	}
	return what
}

// delivered says what a destination did.
func delivered(s *ledger.Settled) Step {
	what := fmt.Sprintf("%d of %s confirmed", s.Confirmed, count(s.Expected, "event"))
	if s.Replay != "" {
		what = count(s.Confirmed, "event") + " confirmed"
	}
	for _, part := range []struct {
		n    uint64
		what string
	}{
		{s.Filtered, "filtered"},
		{s.Skipped, "skipped as too old"},
		{s.Waiting, "waiting"},
		{s.Before, "perhaps older than the destination or its types"},
		{s.Abandoned, "abandoned when it was removed"},
		{s.Missing, "missing"},
		{s.Extra, "too many"},
	} {
		if part.n > 0 {
			what += fmt.Sprintf(", %d %s", part.n, part.what)
		}
	}
	return Step{
		Stage: "deliver", Destination: s.Name, At: s.First, Until: s.Last, What: what + byCode("; quarantined", s.Quarantined),
		Problem: len(s.Quarantined) > 0 || s.Missing+s.Extra > 0,
	}
}

// byCode lists numbers by code, "" when there are none.
func byCode(title string, m map[string]uint64) string {
	var parts []string
	for _, code := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%d %s", m[code], code))
	}
	if len(parts) == 0 {
		return ""
	}
	return title + " " + strings.Join(parts, ", ")
}

func reason(code string) string {
	if code == "" {
		return ""
	}
	return " (" + code + ")"
}

func count(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
