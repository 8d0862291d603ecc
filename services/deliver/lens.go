package deliver

import (
	"unicode/utf8"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/internal/condition"
	"github.com/penstock/penstock/services/internal/document"
)

// lens is the events of the log as one destination sees them. It may be used
// concurrently.
type lens struct {
	destination string
	types       condition.Types      // what of what is sent to it alone it takes
	where       *condition.Condition // nil: all
	masks       masks
	// replay is the job for which the log is read once more, "" for the first time.
	replay string
}

func newLens(cfg Destination) (lens, error) {
	l := lens{destination: cfg.Name, masks: newMasks(cfg.Mask)}
	var err error
	if l.types, err = condition.ParseTypes(cfg.Types); err != nil || cfg.Where == "" {
		return l, err
	}
	l.where, err = condition.Compile(cfg.Where)
	return l, err
}

// again is the job for which events are delivered once more, "" when it is the first time.
func (l *lens) again(v *messages.View) string {
	if l.replay != "" {
		return l.replay
	}
	if r := messages.ParseReplay(v.Replay()); r.Destination != "" {
		return r.Job
	}
	return ""
}

// others tells whether a frame is of a type that the destination does not have. Only what
// is sent to it alone can be.
func (l *lens) others(v *messages.View) bool {
	return messages.ParseReplay(v.Replay()).Destination != "" && !l.types.Has(v.EventType())
}

// leftOut says for each event of a frame whether the expression leaves it out; nil
// when there is no expression. An event for which that fails stays in: nothing is
// lost by a mistake in an expression. s holds the columns, and the documents when the
// expression needs them.
func (l *lens) leftOut(v *messages.View, s *scratch) []bool {
	others := l.others(v)
	if l.where == nil && !others {
		return nil
	}
	out := make([]bool, v.Len())
	if others {
		for i := range out {
			out[i] = true
		}
		return out
	}
	failed, at := 0, 0
	e := condition.Event{Type: v.EventType(), Source: v.Source()}
	for i := range out {
		from := at
		at += int(s.columns.Lengths[i])
		if v.Fate(i) != messages.Live {
			continue
		}
		if l.where.NeedsDoc() {
			e.Doc = s.body[from:at]
		}
		e.ID, e.Time = v.ID(i), s.columns.Times[i]
		e.Account, e.Region = s.account(i), s.region(i)
		ok, err := l.where.Match(&e)
		if err != nil {
			failed++
		}
		out[i] = !ok && err == nil
	}
	if failed > 0 {
		conditionErrors.WithLabelValues(l.destination).Add(float64(failed))
	}
	return out
}

// each calls f for the live events of a frame that are not left out, from index from
// on, until it returns false. s holds the columns and the documents. f keeps nothing
// of the event. For one that a mask does not understand it is called with nil.
func (l *lens) each(v *messages.View, s *scratch, out []bool, from int, f func(i int, e *sinks.Event) bool) {
	e := sinks.Event{Type: v.EventType(), Source: v.Source(), Format: v.Format(), Replay: l.replay}
	if e.Replay == "" {
		e.Replay = messages.ParseReplay(v.Replay()).Job
	}
	at, replaced := 0, 0
	for i := range v.Len() {
		start := at
		at += int(s.columns.Lengths[i])
		if i < from || v.Fate(i) != messages.Live || out != nil && out[i] {
			continue
		}
		e.Doc = s.body[start:at]
		if !utf8.Valid(e.Doc) {
			n := 0
			s.fixed, n = document.AppendValid(s.fixed[:0], e.Doc)
			e.Doc, replaced = s.fixed, replaced+n
		}
		e.ID, e.Time = v.ID(i), s.columns.Times[i]
		e.Account, e.Region = s.account(i), s.region(i)
		seen := &e
		var ok bool
		if e.Doc, ok = l.masks.apply(&s.masked, e.Doc); !ok {
			seen = nil
		}
		if !f(i, seen) {
			break
		}
	}
	if replaced > 0 {
		replacedBytes.WithLabelValues(l.destination).Add(float64(replaced))
	}
}
