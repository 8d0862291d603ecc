package topology

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// In a cluster any replica of a stream may answer a direct get, and a consumer may live
// on any of them. One that lags knows a beginning of the log: what it has is right, but
// that there is nothing more is not. What follows is for those to whom that matters.

// readerPrefix begins the names of consumers that hold nothing: readers of history.
const readerPrefix = "read-"

func readerName() string { return readerPrefix + nuid.Next() }

// consumersOf lists the consumers of a stream, and those by name of which the cluster
// cannot say anything now: their servers are away, or choose a leader. The list of nats.go
// leaves them out without a word.
func (b *Bus) consumersOf(ctx context.Context, stream string) (known []*jetstream.ConsumerInfo, missing []string, err error) {
	for {
		request, _ := json.Marshal(map[string]int{"offset": len(known) + len(missing)}) // cannot fail
		reply, err := b.nc.RequestWithContext(ctx, "$JS.API.CONSUMER.LIST."+stream, request)
		if err != nil {
			return nil, nil, errConnect.New(err, "list the consumers of %s", stream)
		}
		var page struct {
			Error     *jetstream.APIError       `json:"error"`
			Total     int                       `json:"total"`
			Consumers []*jetstream.ConsumerInfo `json:"consumers"`
			Missing   []string                  `json:"missing"`
		}
		if err := json.Unmarshal(reply.Data, &page); err != nil {
			return nil, nil, errConnect.New(err, "list the consumers of %s", stream)
		}
		if page.Error != nil {
			return nil, nil, errConnect.New(page.Error, "list the consumers of %s", stream)
		}
		known, missing = append(known, page.Consumers...), append(missing, page.Missing...)
		if len(page.Consumers)+len(page.Missing) == 0 || len(known)+len(missing) >= page.Total {
			return known, missing, nil
		}
	}
}

// holds tells whether a consumer of that name may have a position to keep.
func holds(name string) bool { return !strings.HasPrefix(name, readerPrefix) }

// readsAll tells whether a consumer gets every message of a stream, so that its ack floor
// says how far it is, whatever its own server knows of the stream.
func readsAll(c *jetstream.ConsumerInfo, s Stream) bool {
	filters := c.Config.FilterSubjects
	if c.Config.FilterSubject != "" {
		filters = append(filters, c.Config.FilterSubject)
	}
	if len(filters) == 0 {
		return true
	}
	for _, subject := range s.Subjects {
		if !slices.ContainsFunc(filters, func(f string) bool { return covers(f, subject) }) {
			return false
		}
	}
	return true
}

// firstFor is the first sequence after another that a consumer's filters fit, by the
// stream's leader; 0 when there is none.
func (b *Bus) firstFor(ctx context.Context, stream string, c *jetstream.ConsumerInfo, after uint64) (uint64, error) {
	filters := c.Config.FilterSubjects
	if c.Config.FilterSubject != "" {
		filters = append(filters, c.Config.FilterSubject)
	}
	h := &History{bus: b, stream: stream}
	first := uint64(0)
	for _, f := range filters {
		m, found, err := h.getFromLeader(ctx, after+1, f)
		if err != nil {
			return 0, err
		}
		if found && (first == 0 || m.Sequence < first) {
			first = m.Sequence
		}
	}
	return first, nil
}

// lastFor is the last sequence that fits one of the filters and was stored at or after a
// time, by the stream's leader; 0 when there is none, or when our user may not ask for it.
func (b *Bus) lastFor(ctx context.Context, stream string, filters []string, from time.Time) (uint64, error) {
	if !b.may("$JS.API.STREAM.MSG.GET." + stream) {
		return 0, nil
	}
	last := uint64(0)
	for _, f := range filters {
		m, found, err := b.leaderGet(ctx, stream, map[string]any{"last_by_subj": f})
		if err != nil {
			return 0, errRead.New(err, "read the last message of %s", f)
		}
		if found && !m.Time.Before(from) {
			last = max(last, m.Sequence)
		}
	}
	return last, nil
}

// leaderGet asks the leader of a stream for one message. While there is none, it waits for
// one for a while.
func (b *Bus) leaderGet(ctx context.Context, stream string, what map[string]any) (m Stored, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, applyPatience)
	defer cancel()
	for {
		m, found, err = b.leaderGetOnce(ctx, stream, what)
		if err == nil || !noLeader(err) {
			return m, found, err
		}
		select {
		case <-ctx.Done():
			return m, found, err
		case <-time.After(250 * time.Millisecond):
		}
	}
}

func (b *Bus) leaderGetOnce(ctx context.Context, stream string, what map[string]any) (Stored, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	request, _ := json.Marshal(what) // cannot fail
	reply, err := b.nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+stream, request)
	if err != nil {
		return Stored{}, false, err
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Headers []byte    `json:"hdrs"`
			Data    []byte    `json:"data"`
			Time    time.Time `json:"time"`
		} `json:"message"`
	}
	if err := json.Unmarshal(reply.Data, &answer); err != nil {
		return Stored{}, false, err
	}
	switch m := answer.Message; {
	case answer.Error == nil && m.Seq > 0:
		stored := Stored{Subject: m.Subject, Sequence: m.Seq, Time: m.Time, Data: m.Data}
		if len(m.Headers) > 0 {
			h, err := nats.DecodeHeadersMsg(m.Headers)
			if err != nil {
				return Stored{}, false, err
			}
			stored.read(h)
		}
		return stored, true, nil
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return Stored{}, false, nil
	case answer.Error != nil:
		return Stored{}, false, answer.Error
	}
	return Stored{}, false, errors.New("the server's answer has no message")
}

// lastUpTo is the last sequence of a subject, 0 when there is none, and up to where in the
// stream that is certain: both by one replica at one moment. all is a filter that fits every
// message of the stream. Source: NATS ADR-31.
func (b *Bus) lastUpTo(ctx context.Context, subject, all string) (last, upTo uint64, err error) {
	last, upTo, err = b.multiLast(ctx, subject, subject)
	if err != nil || upTo > 0 {
		return last, upTo, err
	}
	// A subject that never had a message tells nothing of where the stream is.
	return b.multiLast(ctx, subject, all)
}

func (b *Bus) multiLast(ctx context.Context, subject, filter string) (last, upTo uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, historyTimeout)
	defer cancel()
	fail := func(err error) (uint64, uint64, error) {
		return 0, 0, errRead.New(err, "read the last message of %s", subject)
	}
	inbox := b.nc.NewInbox()
	sub, err := b.nc.SubscribeSync(inbox)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	request, _ := json.Marshal(map[string]any{"multi_last": []string{filter}, "batch": 1024}) // cannot fail
	if err := b.nc.PublishRequest("$JS.API.DIRECT.GET."+streamOf(subject), inbox, request); err != nil {
		return fail(err)
	}
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return fail(err)
		}
		switch status := m.Header.Get("Status"); status {
		case "":
			if m.Header.Get("Nats-Subject") == subject {
				if last, err = strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64); err != nil {
					return fail(err)
				}
			}
		case "204":
			if upTo, err = strconv.ParseUint(m.Header.Get("Nats-UpTo-Sequence"), 10, 64); err != nil {
				return fail(err)
			}
			return last, upTo, nil
		case "404":
			return 0, 0, nil
		default:
			return fail(errors.New(status + " " + m.Header.Get("Description")))
		}
	}
}

// A server that is cut off from the others of its cluster keeps its clients, and answers
// nothing that they ask of streams. Who hears nothing from the bus for as many questions
// turns to another server.
const (
	askEvery   = 2 * time.Second
	askTimeout = 3 * time.Second
	askAgain   = 3
)

var busMoves = promauto.NewCounter(prometheus.CounterOpts{
	Name: "penstock_bus_moves_total", Help: "Times that a connection was moved to another NATS server because the one it had gave no answers.",
})

// attend watches whether the server that we are connected to still reaches the streams,
// until the bus is closed.
func (b *Bus) attend() {
	subject := ""
	for _, s := range Flow {
		if at := "$JS.API.STREAM.INFO." + s.Name; b.may(at) {
			subject = at
			break
		}
	}
	if subject == "" {
		return
	}
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for silent := 0; ; {
		select {
		case <-b.life.Done():
			return
		case <-tick.C:
		}
		if !b.nc.IsConnected() || len(b.nc.Servers()) < 2 {
			silent = 0
			continue // it looks for a server by itself, or has no other
		}
		if b.answers(subject) {
			silent = 0
			continue
		}
		if silent++; silent < askAgain {
			continue
		}
		silent = 0
		b.log.Warn("the server answers nothing about streams, turning to another", "server", b.nc.ConnectedServerName())
		busMoves.Inc()
		if err := b.nc.ForceReconnect(); err != nil {
			b.log.Warn("connection could not be moved, trying on", "err", err)
		}
	}
}

// answers tells whether somebody leads a stream, as far as the server that we are connected
// to knows. One without leaders answers for itself; one without that stream is fine.
func (b *Bus) answers(subject string) bool {
	ctx, cancel := context.WithTimeout(b.life, askTimeout)
	defer cancel()
	reply, err := b.nc.RequestWithContext(ctx, subject, nil)
	if err != nil {
		return b.life.Err() != nil
	}
	var answer struct {
		Error   *jetstream.APIError    `json:"error"`
		Cluster *jetstream.ClusterInfo `json:"cluster"`
	}
	switch err := json.Unmarshal(reply.Data, &answer); {
	case err != nil:
		return false
	case answer.Error != nil:
		return answer.Error.Code != 503
	}
	return answer.Cluster == nil || answer.Cluster.Leader != ""
}
