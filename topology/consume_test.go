package topology

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	wmnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
)

func raw(b []byte) ([]byte, error) { return b, nil }

var (
	errTestRetry  = fault.Define("test.retry", fault.Retry, "")
	errTestReject = fault.Define("test.reject", fault.Reject, "mend the input")
)

func consumer(window int) Consumer {
	return Consumer{Stage: Fetch, Stream: Notices, Durable: "fetch", Window: window, WindowBytes: 16 << 20}
}

func notices(n, size int) []Message {
	ms := make([]Message, n)
	for i := range ms {
		ms[i] = Message{Subject: NoticeSubject("s"), ID: fmt.Sprint("n", i), Data: bytes.Repeat([]byte{byte(i)}, size)}
	}
	return ms
}

func quarantineEntries(t testing.TB, b *Bus) []*messages.Quarantine {
	t.Helper()
	var qs []*messages.Quarantine
	if err := b.Read(t.Context(), Span{Subject: "penstock.quarantine.>"}, func(m Stored) error {
		q, err := messages.DecodeQuarantine(m.Data)
		qs = append(qs, q)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return qs
}

func ackFloor(t testing.TB, b *Bus, c Consumer) uint64 {
	t.Helper()
	info, err := b.js.Consumer(t.Context(), c.Stream, c.Durable)
	if err != nil {
		t.Fatal(err)
	}
	return info.CachedInfo().AckFloor.Stream
}

// A message is acked only when its handler is through and its outputs are stored.
func TestConsumeAcksAfterOutputIsStored(t *testing.T) {
	b := testBus(t, Limits{})
	publish(t, b, notices(50, 100)...)
	release := make(chan struct{})
	run(t, func(ctx context.Context) error {
		return Consume(ctx, b, consumer(16), raw, func(ctx context.Context, in In[[]byte], out Outbox) error {
			<-release
			return out.Publish(ctx, Message{Subject: RecordSubject("s"), ID: fmt.Sprint("r", in.Sequence), Data: in.Data})
		})
	})
	await(t, "a window in hand", func() bool { return inHand(t, b, consumer(16)) == 16 })
	if floor := ackFloor(t, b, consumer(16)); floor != 0 {
		t.Fatalf("ack floor is %d before any handler returned", floor)
	}
	close(release)
	await(t, "all acked", func() bool { return ackFloor(t, b, consumer(16)) == 50 })
	if last, err := b.lastSequence(t.Context(), Records); err != nil || last != 50 {
		t.Fatalf("RECORDS has %d messages, %v; want 50", last, err)
	}
}

func inHand(t testing.TB, b *Bus, c Consumer) int {
	t.Helper()
	info, err := b.js.Consumer(t.Context(), c.Stream, c.Durable)
	if err != nil {
		t.Fatal(err)
	}
	return info.CachedInfo().NumAckPending
}

// Retryable errors come back with a growing attempt; hopeless ones and panics go
// to quarantine with their bytes and their reason; what is good goes on.
func TestConsumeRetriesRejectsAndSurvivesPanics(t *testing.T) {
	b := testBus(t, Limits{})
	publish(t, b,
		Message{Subject: NoticeSubject("s"), ID: "ok", Data: []byte("ok")},
		Message{Subject: NoticeSubject("s"), ID: "retry", Data: []byte("retry")},
		Message{Subject: NoticeSubject("s"), ID: "reject", Data: []byte("reject")},
		Message{Subject: NoticeSubject("s"), ID: "panic", Data: []byte("panic")},
		Message{Subject: NoticeSubject("s"), ID: "corrupt", Data: []byte("corrupt")},
	)
	var mu sync.Mutex
	attempts := map[string]int{}
	decode := func(d []byte) (string, error) {
		if string(d) == "corrupt" {
			return "", errTestReject.New(errors.New("bad wire type"), "decode")
		}
		return string(d), nil
	}
	run(t, func(ctx context.Context) error {
		return Consume(ctx, b, consumer(4), decode, func(_ context.Context, in In[string], _ Outbox) error {
			mu.Lock()
			attempts[in.Value] = in.Attempt
			mu.Unlock()
			switch in.Value {
			case "retry":
				if in.Attempt == 1 {
					return errTestRetry.New(nil, "try")
				}
			case "reject":
				return errTestReject.New(errors.New("broken"), "read it")
			case "panic":
				panic("boom")
			}
			return nil
		})
	})
	await(t, "all settled", func() bool { return ackFloor(t, b, consumer(4)) == 5 })
	mu.Lock()
	defer mu.Unlock()
	if attempts["retry"] != 2 || attempts["panic"] != panicAttempts || attempts["ok"] != 1 {
		t.Errorf("attempts: %v", attempts)
	}
	got := map[string]string{}
	for _, q := range quarantineEntries(t, b) {
		got[string(q.Payload)] = q.Code + " " + q.Subject
		if q.Stage != "fetch" || q.Reason == "" {
			t.Errorf("entry is incomplete: %v", q)
		}
	}
	want := map[string]string{
		"reject":  "test.reject penstock.notice.s",
		"corrupt": "test.reject penstock.notice.s",
		"panic":   "bus.handler_panicked penstock.notice.s",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("quarantined %v, want %v", got, want)
	}
}

func TestHopeless(t *testing.T) {
	tests := []struct {
		name    string
		stage   Stage
		err     error
		attempt int
		age     time.Duration
		want    bool
	}{
		{"new trouble", Parse, errTestRetry.New(nil, "try"), 1, time.Minute, false},
		{"old trouble", Parse, errTestRetry.New(nil, "try"), 4, 7 * time.Hour, true},
		{"old, but hardly tried", Parse, errTestRetry.New(nil, "try"), 3, 7 * time.Hour, false},
		{"a destination that is down for days", Deliver, errTestRetry.New(nil, "try"), 400, 70 * time.Hour, false},
		{"refused", Deliver, errTestReject.New(nil, "take it"), 1, 0, true},
		{"panics again and again", Deliver, errPanic.New(nil, "handle"), panicAttempts, 0, true},
		{"panicked", Parse, errPanic.New(nil, "handle"), 1, 0, false},
	}
	for _, tt := range tests {
		if got := hopeless(tt.stage, tt.err, tt.attempt, tt.age, 6*time.Hour); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// A pull counts messages, the client's buffer counts bytes: 500 messages of
// 256 KiB in one pull overran it. Ours are bounded in bytes.
func TestConsumeBoundsPullsInBytes(t *testing.T) {
	b := testBus(t, Limits{Disk: 4 << 30})
	const n = 300
	ms := notices(n, 256<<10)
	for i := range ms {
		ms[i].Subject = RecordSubject("s")
	}
	publish(t, b, ms...)
	var got, most, now atomic.Int64
	c := Consumer{Stage: Parse, Stream: Records, Durable: "parse", Window: 500, WindowBytes: 16 << 20}
	run(t, func(ctx context.Context) error {
		return Consume(ctx, b, c, raw, func(_ context.Context, in In[[]byte], _ Outbox) error {
			held := now.Add(int64(len(in.Data)))
			defer now.Add(-int64(len(in.Data)))
			for {
				m := most.Load()
				if held <= m || most.CompareAndSwap(m, held) {
					break
				}
			}
			got.Add(1)
			return nil
		})
	})
	await(t, "all settled", func() bool { return ackFloor(t, b, c) == n })
	if got.Load() != n {
		t.Errorf("handled %d messages, want %d: some were dropped and came again", got.Load(), n)
	}
	if limit := c.WindowBytes + 2*pullBytes; most.Load() > limit {
		t.Errorf("%d bytes were in hand at once, limit %d", most.Load(), limit)
	}
}

// A stop lets the work in hand finish, with a living context, gives the rest
// back at once, and does not panic under load. The stock jetstream subscriber
// panics here with "send on closed channel".
func TestConsumeStopsCleanlyUnderLoad(t *testing.T) {
	b := testBus(t, Limits{})
	const n = 400
	publish(t, b, notices(n, 100)...)
	var done atomic.Int64
	for ackFloor(t, b, consumer(8)) < n {
		before := done.Load()
		stop := run(t, func(ctx context.Context) error {
			return Consume(ctx, b, consumer(8), raw, func(ctx context.Context, _ In[[]byte], _ Outbox) error {
				if ctx.Err() != nil {
					t.Error("a message in hand has a dead context")
				}
				done.Add(1)
				return ctx.Err()
			})
		})
		await(t, "some progress", func() bool { return done.Load() > before || ackFloor(t, b, consumer(8)) == n })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	if over := done.Load() - n; over > 0 {
		t.Errorf("%d messages were handled twice, although no stop was hurried", over)
	}
}

// When the drain time is over handlers' contexts end; what they give up is given
// back at once.
func TestConsumeGivesBackWhatWasNotDoneInTime(t *testing.T) {
	e := testServer(t, t.TempDir(), 256<<20)
	b := testConnect(t, e, Options{Name: "late", Drain: 50 * time.Millisecond})
	if _, err := b.Apply(t.Context(), Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	publish(t, b, notices(1, 10)...)
	began, ended := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		ended <- Consume(ctx, b, consumer(1), raw, func(ctx context.Context, _ In[[]byte], _ Outbox) error {
			close(began)
			<-ctx.Done() // the drain time is over: give up, and be given back
			return ctx.Err()
		})
	}()
	<-began
	cancel()
	if err := <-ended; err != nil {
		t.Fatalf("a handler that gives up in time: %v", err)
	}
	again := make(chan int, 1)
	run(t, func(ctx context.Context) error {
		return Consume(ctx, b, consumer(1), raw, func(_ context.Context, in In[[]byte], _ Outbox) error { again <- in.Attempt; return nil })
	})
	select {
	case attempt := <-again:
		if attempt != 2 {
			t.Errorf("attempt %d, want 2", attempt)
		}
	case <-time.After(time.Minute):
		t.Error("the message was not given back")
	}
}

// A restart of the server is bridged: consumers and publishers go on by themselves.
func TestConsumeSurvivesAServerRestart(t *testing.T) {
	dir := t.TempDir()
	e, err := StartEmbedded(EmbeddedOptions{Dir: dir, Listen: "127.0.0.1:0", Disk: 256 << 20, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	addr := e.server.Addr().String()
	b := testConnectByURL(t, e, "restart")
	if _, err := b.Apply(t.Context(), Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	got := map[uint64]bool{}
	run(t, func(ctx context.Context) error {
		return Consume(ctx, b, consumer(8), raw, func(_ context.Context, in In[[]byte], _ Outbox) error {
			mu.Lock()
			defer mu.Unlock()
			got[in.Sequence] = true
			return nil
		})
	})
	publish(t, b, notices(20, 10)...)
	e.Stop()
	again := make(chan *Embedded, 1)
	go func() {
		second, err := startWithPassword(EmbeddedOptions{Dir: dir, Listen: addr, Disk: 256 << 20, Log: testLog(t)}, e.password)
		if err != nil {
			t.Error(err)
		}
		again <- second
	}()
	more := notices(40, 10)[20:]
	publish(t, b, more...) // blocks until the server is back
	if second := <-again; second != nil {
		t.Cleanup(second.Stop)
	}
	await(t, "all handled", func() bool { mu.Lock(); defer mu.Unlock(); return len(got) == 40 })
}

// A full stream does not fail a publish: it holds it, until somebody makes room.
func TestFullStreamHoldsThePublisher(t *testing.T) {
	b := testBus(t, Limits{Disk: 100 << 20}) // NOTICES: 1 MiB
	out := b.NewOutbox(Ingest)
	published := make(chan error, 1)
	go func() {
		for _, m := range notices(40, 64<<10) {
			if err := out.Publish(t.Context(), m); err != nil {
				published <- err
				return
			}
		}
		published <- out.Flush(t.Context())
	}()
	full := func() bool {
		s, err := b.js.Stream(t.Context(), Notices)
		return err == nil && s.CachedInfo().State.Bytes > 900<<10
	}
	await(t, "the stream is full", full)
	select {
	case err := <-published:
		t.Fatalf("40 messages of 64 KiB went into 1 MiB: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	var handled atomic.Int64
	run(t, b.Keep)
	run(t, func(ctx context.Context) error {
		return Consume(ctx, b, consumer(4), raw, func(context.Context, In[[]byte], Outbox) error { handled.Add(1); return nil })
	})
	if err := <-published; err != nil {
		t.Fatal(err)
	}
	await(t, "all arrived", func() bool { return handled.Load() == 40 })
}

// Trace context crosses the hop: the handler's span is a child of the publisher's.
func TestTraceCrossesTheBus(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	before := otel.GetTracerProvider()
	otel.SetTracerProvider(provider)
	t.Cleanup(func() { otel.SetTracerProvider(before) })
	b := testBus(t, Limits{})
	ctx, parent := provider.Tracer("t").Start(t.Context(), "ingest")
	out := b.NewOutbox(Ingest)
	if err := out.Publish(ctx, notices(1, 1)[0]); err != nil {
		t.Fatal(err)
	}
	if err := out.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	parent.End()
	remote := make(chan In[[]byte], 1)
	run(t, func(ctx context.Context) error {
		return Consume(ctx, b, consumer(1), raw, func(_ context.Context, in In[[]byte], _ Outbox) error { remote <- in; return nil })
	})
	in := <-remote
	if in.Span.SpanID() != parent.SpanContext().SpanID() {
		t.Errorf("handler got parent %v, want %v", in.Span.SpanID(), parent.SpanContext().SpanID())
	}
	await(t, "the span ended", func() bool { return len(spans.Ended()) == 2 })
	for _, s := range spans.Ended() {
		if s.Name() == "fetch" && s.Parent().SpanID() == parent.SpanContext().SpanID() && s.SpanContext().TraceID() == parent.SpanContext().TraceID() {
			return
		}
	}
	t.Error("no span fetch that is a child of ingest")
}

// A header with two values kills the stock jetstream subscriber; here the first
// value counts.
func TestConsumeReadsAHeaderWithTwoValues(t *testing.T) {
	b := testBus(t, Limits{})
	if _, err := b.js.PublishMsg(t.Context(), &nats.Msg{
		Subject: NoticeSubject("s"), Data: []byte("x"), Header: nats.Header{"X": {"1", "2"}, headerUUID: {"u"}},
	}); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	run(t, func(ctx context.Context) error {
		return Consume(ctx, b, consumer(1), raw, func(_ context.Context, in In[[]byte], _ Outbox) error { got <- string(in.Data); return nil })
	})
	if d := <-got; d != "x" {
		t.Errorf("got %q", d)
	}
}

// Any Watermill program can read the event log with the stock subscriber.
func TestStockWatermillSubscriberReadsEvents(t *testing.T) {
	e := testServer(t, t.TempDir(), 256<<20)
	b := testConnect(t, e, Options{Name: "interop"})
	if _, err := b.Apply(t.Context(), Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	frame := testFrame(t, 0, "interop", 3)
	if err := b.Publisher().Publish(EventSubject("t.x"), message.NewMessageWithContext(t.Context(), "id-1", frame)); err != nil {
		t.Fatal(err)
	}
	stock, err := wmnats.NewSubscriber(wmnats.SubscriberConfig{
		URL: e.URL(), Unmarshaler: &wmnats.NATSMarshaler{},
		JetStream: wmnats.JetStreamConfig{SubscribeOptions: []nats.SubOpt{nats.DeliverAll(), nats.AckExplicit()}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stock.Close() }()
	msgs, err := stock.Subscribe(t.Context(), "penstock.event.>")
	if err != nil {
		t.Fatal(err)
	}
	select {
	case m := <-msgs:
		m.Ack()
		v, err := messages.DecodeFrame(m.Payload)
		if err != nil || v.Len() != 3 || m.UUID != "id-1" {
			t.Errorf("message %q with %d events, %v", m.UUID, v.Len(), err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the stock subscriber got nothing")
	}
}

// A message beyond the server's payload limit is refused for good, not retried.
func TestTooLargeMessageIsRejected(t *testing.T) {
	b := testBus(t, Limits{})
	err := b.NewOutbox(Fetch).Publish(t.Context(), Message{Subject: RecordSubject("s"), ID: "big", Data: make([]byte, messages.MaxFrame-headerRoom+1)})
	if !errors.Is(err, errTooLarge) || fault.ClassOf(err) != fault.Reject {
		t.Fatalf("got %v", err)
	}
	_, err = b.store(t.Context(), toNATS(t.Context(), Message{Subject: RecordSubject("s"), ID: "big", Data: make([]byte, 9<<20)}))
	if !errors.Is(err, errTooLarge) {
		t.Fatalf("got %v", err)
	}
}

// The same Nats-Msg-Id is stored once, also over a restart of the server.
func TestRepeatedPublishIsStoredOnceAcrossRestart(t *testing.T) {
	dir := t.TempDir()
	e, err := StartEmbedded(EmbeddedOptions{Dir: dir, Disk: 256 << 20, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	b := testConnect(t, e, Options{})
	if _, err := b.Apply(t.Context(), Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	publish(t, b, notices(5, 10)...)
	publish(t, b, notices(5, 10)...)
	e.Stop()
	second := testServer(t, dir, 256<<20)
	b2 := testConnect(t, second, Options{})
	publish(t, b2, notices(5, 10)...)
	if last, err := b2.lastSequence(t.Context(), Notices); err != nil || last != 5 {
		t.Fatalf("stream is at %d, %v; want 5", last, err)
	}
}

func TestSecondServerInOneDirectoryIsRefused(t *testing.T) {
	dir := t.TempDir()
	testServer(t, dir, 64<<20)
	_, err := StartEmbedded(EmbeddedOptions{Dir: dir, Disk: 64 << 20, Log: testLog(t)})
	if err == nil || !strings.Contains(err.Error(), "another process holds it") {
		t.Fatalf("got %v", err)
	}
}

func TestURLSecretsStayOutOfErrors(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := Connect(ctx, Options{URL: "nats://u:canary@127.0.0.1:1", Log: testLog(t)})
	if err == nil || strings.Contains(err.Error(), "canary") {
		t.Fatalf("got %v", err)
	}
}

func TestParseReply(t *testing.T) {
	for _, reply := range []string{
		"$JS.ACK.NOTICES.fetch.2.10.11.1700000000000000000.7",
		"$JS.ACK.hub.ACCHASH.NOTICES.fetch.2.10.11.1700000000000000000.7",
		"$JS.ACK._.ACCHASH.NOTICES.fetch.2.10.11.1700000000000000000.7.TOKEN",
	} {
		m, err := parseReply(reply)
		if err != nil || m.stream != "NOTICES" || m.consumer != "fetch" || m.delivered != 2 || m.seq != 10 || m.pending != 7 || m.stored.Unix() != 1_700_000_000 {
			t.Errorf("%s: %+v %v", reply, m, err)
		}
	}
	for _, bad := range []string{"", "x", "$JS.ACK.a.b.c", "$JS.ACK.N.f.x.10.11.1.7"} {
		if _, err := parseReply(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// A consumer that is to read from now on begins behind what is stored when it is
// made, also when it is asked for again later.
func TestFromNowBeginsWhereItWasMade(t *testing.T) {
	b := testBus(t, Limits{})
	publish(t, b, events(5, 1, "a.x")...)
	c := DeliverConsumer("late", nil, Start{Now: true})
	for range 2 {
		first, err := b.Begin(t.Context(), c)
		if err != nil || first != 6 {
			t.Fatalf("begins at %d, %v; want 6", first, err)
		}
		publish(t, b, Message{Subject: EventSubject("a.x"), ID: fmt.Sprint("more", time.Now().UnixNano()), Data: []byte("x")})
	}
	if first, err := b.Begin(t.Context(), DeliverConsumer("early", nil, Start{})); err != nil || first != 1 {
		t.Fatalf("begins at %d, %v; want 1", first, err)
	}
}

// A lane's empty marker is a frame that every reader understands.
func TestEmptyFrameDecodes(t *testing.T) {
	v, err := messages.DecodeFrame(emptyFrame())
	if err != nil || v.Len() != 0 {
		t.Fatalf("%d events, %v", v.Len(), err)
	}
}

// A reader that is slow asks for no more than it takes: what waits in the client
// stays within one pull, however much there is.
func TestOrderedReaderAsksForNoMoreThanItTakes(t *testing.T) {
	b := testBus(t, Limits{Disk: 1 << 30, Lanes: 1})
	const n = 400
	var ms []Message
	for i := range n {
		ms = append(ms, Message{Subject: ParsedSubject(0), ID: fmt.Sprint(i), Data: make([]byte, 10<<10)})
	}
	publish(t, b, ms...)
	r := &orderedReader{bus: b, subject: ParsedSubject(0), next: 1}
	defer r.Close()
	most := 0
	for seq := uint64(1); seq <= n; {
		_, meta, err := r.Next(t.Context())
		if errors.Is(err, errIdle) {
			continue
		}
		if err != nil || meta.seq != seq {
			t.Fatalf("message %d, %v; want %d", meta.seq, err, seq)
		}
		seq++
		waiting, _, err := r.sub.Pending()
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, waiting)
	}
	if most > 2*readBatch {
		t.Errorf("%d messages waited in the client, want at most %d", most, 2*readBatch)
	}
}

// A frame that route published and did not come to acknowledge is in the event log
// once, also when it comes again after the server has forgotten its message id.
func TestEventLogTakesAFrameOnceAfterTheDuplicateWindow(t *testing.T) {
	e := testServer(t, t.TempDir(), 256<<20)
	b := testConnect(t, e, Options{Name: "route", Remembered: time.Millisecond})
	if _, err := b.Apply(t.Context(), Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	log := Limits{Disk: 256 << 20}.withDefaults().config(row(Events))
	log.Duplicates = 200 * time.Millisecond
	if _, err := b.js.UpdateStream(t.Context(), log); err != nil {
		t.Fatal(err)
	}
	publish(t, b, Message{Subject: UniqueSubject(0), ID: "in", Data: []byte("frame")})
	var attempts atomic.Int64
	run(t, func(ctx context.Context) error {
		c := RouteConsumer
		c.Window = 1
		return Consume(ctx, b, c, raw, func(ctx context.Context, in In[[]byte], out Outbox) error {
			attempts.Store(int64(in.Attempt))
			if err := out.Publish(ctx, Message{Subject: EventSubject("a.x"), ID: "u0/1", Data: in.Data}); err != nil {
				return err
			}
			if in.Attempt < 3 {
				if err := out.Flush(ctx); err != nil {
					return err
				}
				return errTestRetry.New(nil, "die before the ack")
			}
			return nil
		})
	})
	await(t, "acked", func() bool { return ackFloor(t, b, RouteConsumer) == 1 })
	if n := attempts.Load(); n != 3 {
		t.Fatalf("%d attempts, want 3", n)
	}
	if s := stream(t, b, Events); s.Msgs != 1 {
		t.Errorf("the event log has %d frames, want 1", s.Msgs)
	}
}
