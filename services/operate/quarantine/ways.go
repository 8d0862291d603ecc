package quarantine

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/topology"
)

// way is how an entry gets to the stage that refused it.
//
//	stage    holds                     way
//	ingest   sqs_body, bytes, record   asked:    the process that has the source judges the bytes anew
//	ingest   frame                     records:  the frame, as a pull of its own
//	fetch    notice, bytes, record     notice:   the object is read again; where some records were refused, those alone
//	parse    record                    records:  a frame of that record
//	parse    frame                     frame:    the frame itself, as the same pull
//	parse    record or frame, cut      notice:   where they came from an object
//	dedupe   frame                     frame:    the frame itself
//	route    event                     parsed:   a frame of that event, in a dedupe set of its own
//	route    event without its id      records:  an older penstock: parse makes the event anew
//	route    frame                     parsed:   its live events, in a dedupe set of their own
//	deliver  event, frame              again:    to the one destination, with their ids
type way uint8

const (
	blocked way = iota
	asked
	records
	notice
	frame
	parsed
	again
)

// words tell people where an entry goes.
func (w way) words(q *messages.Quarantine) string {
	switch w {
	case asked:
		return "the process that has source " + q.GetSource() + " judges it anew"
	case notice:
		if len(partsOf(q)) > 0 {
			return "fetch reads the object again and takes the records that were refused"
		}
		return "fetch reads the object again"
	case records:
		if q.GetStage() == string(topology.Route) {
			return "parse makes the event anew: an older penstock did not keep its id and type"
		}
		return "parse reads it again"
	case frame:
		return q.GetStage() + " reads the frame again"
	case parsed:
		return "route takes it through all rules again"
	case again:
		if q.GetHolds() == messages.Quarantine_HOLDS_EVENT && len(q.GetEventId()) == 0 {
			return "destination " + q.GetDestination() + " gets it, with an id made from its origin: an older penstock did not keep its own"
		}
		return "destination " + q.GetDestination() + " gets it, with the id that it had"
	case blocked:
	}
	return ""
}

// wayOf tells how an entry is redriven, or why it cannot be.
func wayOf(q *messages.Quarantine) (way, string) {
	const cut = "only the first %d bytes of it were kept; have it sent again, and discard the entry"
	object := q.GetOrigin().GetBucket() != "" && q.GetOrigin().GetKey() != ""
	whole := func(w way) (way, string) {
		if q.GetCut() {
			return blocked, fmt.Sprintf(cut, len(q.GetPayload()))
		}
		return w, ""
	}
	event, inFrame := q.GetHolds() == messages.Quarantine_HOLDS_EVENT, q.GetHolds() == messages.Quarantine_HOLDS_FRAME
	switch topology.Stage(q.GetStage()) {
	case topology.Ingest:
		if inFrame {
			return whole(records)
		}
		return whole(asked)
	case topology.Fetch:
		if q.GetHolds() != messages.Quarantine_HOLDS_NOTICE && !object {
			return blocked, "it does not say which object it is from; discard it"
		}
		return notice, ""
	case topology.Parse:
		switch {
		case q.GetCut() && object:
			return notice, ""
		case inFrame:
			return whole(frame)
		}
		return whole(records)
	case topology.Dedupe:
		if !strings.HasPrefix(q.GetSubject(), topology.ParsedPrefix) {
			return blocked, "it does not say which lane it is from; discard it"
		}
		return whole(frame)
	case topology.Route:
		if event && (len(q.GetEventId()) != len(messages.ID{}) || q.GetEventType() == "") {
			return whole(records)
		}
		return whole(parsed)
	case topology.Deliver:
		if q.GetDestination() == "" {
			return blocked, "an older penstock did not keep which destination refused it; replay its time to the destination instead"
		}
		return whole(again)
	}
	return blocked, fmt.Sprintf("this penstock has no stage %q; update it", q.GetStage())
}

// liftable are the codes of limits that can be lifted for one time. Those that bound the
// memory of a process, or what the bus carries, cannot: for these, raise what is named
// and redrive plainly.
var liftable = []string{
	"fetch.bomb",                  // how many times larger an object may get
	"fetch.too_large",             // the largest object
	"fetch.too_many_bad_records",  // how many bad records of an object are kept one by one
	"framing.record_too_large",    // the largest record or line, up to 64 MiB
	"ingest.too_many_bad_records", // how many bad records of a message are kept one by one
}

// Liftable tells whether the limit behind a code can be lifted for one time.
func Liftable(code string) bool { return slices.Contains(liftable, code) }

// fixes are the fixes of all faults by code.
var fixes = sync.OnceValue(func() map[string]string {
	all := map[string]string{}
	for _, k := range fault.All() {
		all[k.Code] = k.Fix
	}
	return all
})

// panicked is the fault of who may have lost some of the records before it.
const panicked = "fetch.panic"

// ended tells whether the reading of an object ended with an entry, and behind its record
// nothing has gone on. The faults of records alone are those of framing and of parse.
func ended(q *messages.Quarantine) bool {
	return q.GetStage() == string(topology.Fetch) && q.GetCode() != panicked &&
		(q.GetHolds() == messages.Quarantine_HOLDS_NOTICE || !strings.HasPrefix(q.GetCode(), "framing."))
}

// partsOf are the parts of the object that an entry of fetch, or a cut one of parse, stands
// for; none for all of it. What went on before is not read again: dedupe knows the last day
// only.
func partsOf(q *messages.Quarantine) []*messages.Part {
	format, payload := q.GetFormat(), q.GetPayload()
	n, err := noticeOf(q)
	switch {
	case err == nil && len(n.GetParts()) > 0: // they were redriven before
		if q.GetCode() == panicked {
			return n.GetParts()
		}
		return rest(n.GetParts(), q.GetRecord())
	case format == "" || q.GetOrigin().GetEtag() == "":
		return nil // it was not read so far
	case ended(q):
		if q.GetHolds() == messages.Quarantine_HOLDS_NOTICE {
			payload = nil
		}
		if q.GetRecord() == 0 && len(payload) == 0 {
			return nil
		}
		return []*messages.Part{{Record: q.GetRecord(), Format: format, Code: q.GetCode(), Payload: payload}}
	case q.GetHolds() == messages.Quarantine_HOLDS_NOTICE || q.GetHolds() == messages.Quarantine_HOLDS_FRAME || q.GetRecords() == 0:
		return nil
	}
	return []*messages.Part{{Record: q.GetRecord(), Records: q.GetRecords(), Format: format, Code: q.GetCode(), Payload: payload}}
}

// rest is what of parts is at and behind a record.
func rest(parts []*messages.Part, record uint64) []*messages.Part {
	var left []*messages.Part
	for _, p := range parts {
		switch {
		case p.GetRecord() >= record:
			left = append(left, p)
		case p.GetRecords() == 0, p.GetRecord()+p.GetRecords() > record:
			cut := &messages.Part{Record: record, Format: p.GetFormat(), Code: p.GetCode(), Payload: p.GetPayload()}
			if p.GetRecords() > 0 {
				cut.Records = p.GetRecord() + p.GetRecords() - record
			}
			left = append(left, cut)
		}
	}
	return left
}

// noticeOf is the notice that an entry holds, or one of the object that it is from.
func noticeOf(q *messages.Quarantine) (*messages.Notice, error) {
	if q.GetHolds() == messages.Quarantine_HOLDS_NOTICE {
		return messages.DecodeNotice(q.GetPayload())
	}
	return &messages.Notice{Origin: q.GetOrigin(), Region: q.GetOrigin().GetRegion()}, nil
}
