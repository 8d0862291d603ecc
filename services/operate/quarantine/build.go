package quarantine

import (
	"context"
	"encoding/hex"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/topology"
)

var errUnreadable = fault.Define("quarantine.unreadable", fault.Reject,
	"update penstock to the version that wrote the entry, then redrive it; or export and discard it")

// made is what becomes of an entry on the bus.
type made struct {
	messages []topology.Message
	facts    []*messages.Fact
	// derived: the event got an id that it did not bring.
	derived bool
}

// builder makes messages of entries. What it makes follows from the entries alone, but for
// the job that facts name.
type builder struct {
	job   string
	lanes func(ctx context.Context) (uint32, error)
}

// attempts of an entry so far; those of an older ingest do not say that it was one.
func attempts(q *messages.Quarantine) uint32 { return max(1, q.GetAttempts()) }

// messageID is the id of the message of an entry.
func messageID(entry string) string { return "q/" + entry }

// replayOf is what frames say of a redriven entry: a dedupe set of its own, and for whom
// alone they are.
func replayOf(q *messages.Quarantine, destination string) string {
	return messages.Replay{Job: "q-" + q.GetId()[:min(16, len(q.GetId()))], Destination: destination}.String()
}

// only is the destination that alone an entry of a stage before deliver concerns, "" for none.
func only(q *messages.Quarantine) string { return messages.ParseReplay(q.GetReplay()).Destination }

// message is that of an entry.
func message(q *messages.Quarantine, subject string, data []byte) topology.Message {
	return topology.Message{Subject: subject, ID: messageID(q.GetId()), Data: data, Attempts: attempts(q)}
}

// originOf is the origin of what becomes of an entry: the same, but another pull.
func originOf(q *messages.Quarantine, o *messages.Origin, part int) *messages.Origin {
	c := proto.CloneOf(o)
	if c == nil {
		c = &messages.Origin{}
	}
	if c.GetSource() == "" {
		c.Source = q.GetSource()
	}
	c.Pull = messages.EntryPull(q.GetId(), part)
	return c
}

// announced tells the ledger of a pull that is there again. Of one that concerns one
// destination it says what its frames say: nobody else is to confirm it.
func (b *builder) announced(o *messages.Origin, before []byte, as messages.Announced_As, replay string) *messages.Fact {
	job := b.job
	if messages.ParseReplay(replay).Destination != "" {
		job = replay
	}
	return &messages.Fact{Kind: &messages.Fact_Announced{Announced: &messages.Announced{Origin: o, As: as, Again: before, Job: job}}}
}

func fetched(o *messages.Origin, records uint64, size int) *messages.Fact {
	return &messages.Fact{Kind: &messages.Fact_Fetched{Fetched: &messages.Fetched{
		Pull: o.GetPull(), Source: o.GetSource(), Frames: 1, Records: records, Bytes: uint64(size), RawBytes: uint64(size),
		End: messages.Fetched_END_COMPLETE,
	}}}
}

func parsedFact(o *messages.Origin, n uint64) *messages.Fact {
	return &messages.Fact{Kind: &messages.Fact_Parsed{Parsed: &messages.Parsed{Pull: o.GetPull(), Records: n, Events: n}}}
}

// build makes what an entry becomes that goes its way alone.
func (b *builder) build(ctx context.Context, q *messages.Quarantine, w way) (made, error) {
	switch w {
	case records:
		if q.GetHolds() == messages.Quarantine_HOLDS_FRAME {
			return b.recordFrame(q)
		}
		return b.record(q)
	case frame:
		subject := q.GetSubject()
		if q.GetStage() == string(topology.Parse) {
			subject = topology.RecordSubject(q.GetSource())
		}
		return made{messages: []topology.Message{message(q, subject, q.GetPayload())}}, nil
	case parsed:
		if q.GetHolds() == messages.Quarantine_HOLDS_FRAME {
			return b.parsedFrame(q)
		}
		return b.parsedEvent(ctx, q)
	case again:
		if q.GetHolds() == messages.Quarantine_HOLDS_FRAME {
			return b.againFrame(q)
		}
		return b.againEvent(ctx, q)
	case blocked, asked, notice:
	}
	return made{}, errUnreadable.New(nil, "redrive entry %s, which holds %s of stage %s", q.GetId(), q.GetHolds(), q.GetStage())
}

// record makes a frame of one raw record.
func (b *builder) record(q *messages.Quarantine) (made, error) {
	h := messages.Header{Source: q.GetSource(), Format: q.GetFormat(), FirstRecord: q.GetRecord(), Head: q.GetHeader()}
	if to := only(q); to != "" || q.GetStage() == string(topology.Route) {
		h.Replay = replayOf(q, to) // dedupe has seen it, or it is for one destination
	}
	o := originOf(q, q.GetOrigin(), 0)
	f := messages.NewBuilder(h)
	f.Origin(o)
	f.AddRecord(q.GetPayload())
	return made{
		messages: []topology.Message{message(q, topology.RecordSubject(q.GetSource()), f.Encode(nil))},
		facts: []*messages.Fact{
			b.announced(o, q.GetOrigin().GetPull(), messages.Announced_AS_EVENTS, h.Replay), fetched(o, 1, len(q.GetPayload())),
		},
	}, nil
}

// view reads the frame that an entry holds.
func view(q *messages.Quarantine) (v messages.View, origins []*messages.Origin, columns messages.Columns, body []byte, err error) {
	if v, err = messages.DecodeFrame(q.GetPayload()); err != nil {
		return v, nil, columns, nil, err
	}
	if origins, err = v.Origins(); err != nil {
		return v, nil, columns, nil, err
	}
	if len(origins) == 0 {
		return v, nil, columns, nil, errUnreadable.New(nil, "read the frame of entry %s: it has no origin", q.GetId())
	}
	if err = v.Columns(&columns); err != nil {
		return v, nil, columns, nil, err
	}
	body, err = v.Body(nil)
	return v, origins, columns, body, err
}

// recordFrame makes a frame of raw records anew, as a pull of its own.
func (b *builder) recordFrame(q *messages.Quarantine) (made, error) {
	v, origins, columns, body, err := view(q)
	if err != nil {
		return made{}, err
	}
	o := originOf(q, origins[0], 0)
	f := messages.NewBuilder(messages.Header{Source: v.Source(), Format: v.Format(), FirstRecord: v.FirstRecord(), Replay: v.Replay(), Head: v.Head()})
	f.Origin(o)
	at, next := 0, v.FirstRecord()
	for i := range v.Len() {
		if gap := columns.Records[i] - next; gap > 0 {
			f.Skip(gap)
		}
		next = columns.Records[i] + 1
		f.AddRecord(body[at : at+int(columns.Lengths[i])])
		at += int(columns.Lengths[i])
	}
	return made{
		messages: []topology.Message{message(q, topology.RecordSubject(q.GetSource()), f.Encode(nil))},
		facts: []*messages.Fact{
			b.announced(o, origins[0].GetPull(), messages.Announced_AS_EVENTS, v.Replay()), fetched(o, uint64(v.Len()), len(body)),
		},
	}, nil
}

// eventOf is the event that an entry holds, and whether it got an id.
func eventOf(q *messages.Quarantine) (e messages.Event, eventType string, derived bool) {
	e = messages.Event{Time: q.GetEventTime(), Account: q.GetAccount(), Region: q.GetRegion(), Record: q.GetRecord(), Doc: q.GetPayload()}
	eventType = q.GetEventType()
	if len(q.GetEventId()) == len(e.ID) {
		e.ID = messages.ID(q.GetEventId())
		return e, eventType, false
	}
	// What an older penstock wrote. The same event refused by two destinations gets one id.
	e.ID = messages.NewID([]byte("quarantine"), q.GetOrigin().GetPull(), strconv.AppendUint(nil, q.GetRecord(), 10), q.GetPayload())
	if t, ok := strings.CutPrefix(q.GetSubject(), topology.EventPrefix); ok && eventType == "" {
		eventType = t
	}
	if eventType == "" {
		eventType = q.GetFormat()
	}
	for _, t := range []int64{q.GetOrigin().GetCreated(), q.GetOrigin().GetReceived(), q.GetTime()} {
		if e.Time == 0 {
			e.Time = t
		}
	}
	if e.Account == "" {
		e.Account = q.GetOrigin().GetAccount()
	}
	if e.Region == "" {
		e.Region = q.GetOrigin().GetRegion()
	}
	return e, eventType, true
}

// single is a frame of one event.
func (b *builder) single(ctx context.Context, q *messages.Quarantine, o *messages.Origin, replay string) (data []byte, lane uint32, derived bool, err error) {
	lanes, err := b.lanes(ctx)
	if err != nil {
		return nil, 0, false, err
	}
	e, eventType, derived := eventOf(q)
	lane = e.ID.Lane(lanes)
	f := messages.NewBuilder(messages.Header{Source: q.GetSource(), Format: q.GetFormat(), EventType: eventType, Replay: replay, Lane: lane})
	e.Origin = f.Origin(o)
	f.Add(e)
	return f.Encode(nil), lane, derived, nil
}

// parsedEvent has an event go through dedupe and route again.
func (b *builder) parsedEvent(ctx context.Context, q *messages.Quarantine) (made, error) {
	o := originOf(q, q.GetOrigin(), 0)
	replay := replayOf(q, only(q))
	data, lane, derived, err := b.single(ctx, q, o, replay)
	return made{
		messages: []topology.Message{message(q, topology.ParsedSubject(lane), data)},
		facts: []*messages.Fact{
			b.announced(o, q.GetOrigin().GetPull(), messages.Announced_AS_EVENTS, replay), fetched(o, 1, len(q.GetPayload())), parsedFact(o, 1),
		},
		derived: derived,
	}, err
}

// parsedFrame has the live events of a frame go through dedupe and route again.
func (b *builder) parsedFrame(q *messages.Quarantine) (made, error) {
	v, origins, columns, body, err := view(q)
	if err != nil {
		return made{}, err
	}
	var m made
	replay := replayOf(q, messages.ParseReplay(v.Replay()).Destination)
	f := messages.NewBuilder(messages.Header{Source: v.Source(), Format: v.Format(), EventType: v.EventType(), Lane: v.Lane(), Replay: replay})
	news, counts, sizes := make([]*messages.Origin, len(origins)), make([]uint64, len(origins)), make([]int, len(origins))
	at := 0
	for i := range v.Len() {
		doc := body[at : at+int(columns.Lengths[i])]
		at += len(doc)
		if v.Fate(i) != messages.Live {
			continue
		}
		k := columns.OriginOf[i]
		if news[k] == nil {
			news[k] = originOf(q, origins[k], int(k))
		}
		counts[k]++
		sizes[k] += len(doc)
		f.Add(messages.Event{
			ID: v.ID(i), Time: columns.Times[i], Account: nameAt(columns.Accounts, columns.AccountOf, i), Region: nameAt(columns.Regions, columns.RegionOf, i),
			Origin: f.Origin(news[k]), Record: columns.Records[i], Doc: doc,
		})
	}
	if f.Len() == 0 {
		return m, nil // nothing was refused but duplicates
	}
	m.messages = []topology.Message{message(q, topology.ParsedSubject(v.Lane()), f.Encode(nil))}
	for k, o := range news {
		if o != nil {
			m.facts = append(m.facts, b.announced(o, origins[k].GetPull(), messages.Announced_AS_EVENTS, replay), fetched(o, counts[k], sizes[k]), parsedFact(o, counts[k]))
		}
	}
	return m, nil
}

func nameAt(names []string, of []uint32, i int) string {
	if i < len(of) && int(of[i]) < len(names) {
		return names[of[i]]
	}
	return ""
}

// againEvent is an event for the destination that refused it, and nobody else.
func (b *builder) againEvent(ctx context.Context, q *messages.Quarantine) (made, error) {
	o := q.GetOrigin()
	if o == nil {
		o = &messages.Origin{Source: q.GetSource()}
	}
	data, _, derived, err := b.single(ctx, q, o, replayOf(q, q.GetDestination()))
	m := message(q, topology.AgainSubject(q.GetDestination()), data)
	m.Events, m.Bytes, m.Source = 1, len(q.GetPayload()), q.GetSource()
	return made{messages: []topology.Message{m}, derived: derived}, err
}

// againFrame is a frame for the destination that refused it, and nobody else.
func (b *builder) againFrame(q *messages.Quarantine) (made, error) {
	v, origins, columns, body, err := view(q)
	if err != nil {
		return made{}, err
	}
	f := messages.NewBuilder(messages.Header{
		Source: v.Source(), Format: v.Format(), EventType: v.EventType(), Lane: v.Lane(), Replay: replayOf(q, q.GetDestination()),
	})
	at := 0
	for i := range v.Len() {
		doc := body[at : at+int(columns.Lengths[i])]
		at += len(doc)
		if v.Fate(i) == messages.Live {
			f.Add(messages.Event{
				ID: v.ID(i), Time: columns.Times[i], Account: nameAt(columns.Accounts, columns.AccountOf, i), Region: nameAt(columns.Regions, columns.RegionOf, i),
				Origin: f.Origin(origins[columns.OriginOf[i]]), Record: columns.Records[i], Doc: doc,
			})
		}
	}
	if f.Len() == 0 {
		return made{}, nil
	}
	m := message(q, topology.AgainSubject(q.GetDestination()), f.Encode(nil))
	m.Events, m.Bytes, m.Source = f.Len(), f.BodySize(), v.Source()
	return made{messages: []topology.Message{m}}, nil
}

// notices makes one notice for entries of one object. Parts are what of it is wanted.
func (b *builder) notices(entries []*messages.Quarantine, parts []*messages.Part, allow []string) made {
	first := entries[0]
	n, err := noticeOf(first)
	if err != nil { // fetch could not read it either
		return made{messages: []topology.Message{message(first, topology.NoticeSubject(first.GetSource()), first.GetPayload())}}
	}
	n = proto.CloneOf(n)
	ids, most := []string{first.GetId()}, attempts(first)
	for _, q := range entries[1:] {
		ids = append(ids, q.GetId())
		most = max(most, attempts(q))
	}
	id := ids[0]
	if len(ids) > 1 {
		id = hex.EncodeToString(messages.NewPull("entries", strings.Join(ids, ",")))
	}
	// Where fetch has seen the object, it has noted which one that was: the parts hold for it.
	before := n.GetOrigin().GetPull()
	o := originOf(&messages.Quarantine{Id: id, Source: first.GetSource()}, first.GetOrigin(), 0)
	if o.GetBucket() == "" {
		o = originOf(&messages.Quarantine{Id: id, Source: first.GetSource()}, n.GetOrigin(), 0)
	}
	if len(before) == 0 {
		before = first.GetOrigin().GetPull()
	}
	n.Origin, n.Parts, n.Allow = o, parts, allow
	return made{
		messages: []topology.Message{{
			Subject: topology.NoticeSubject(first.GetSource()), ID: "q/" + id, Data: messages.EncodeNotice(n), Attempts: most,
		}},
		facts: []*messages.Fact{b.announced(o, before, messages.Announced_AS_OBJECT, "")},
	}
}
