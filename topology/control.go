package topology

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/penstock/penstock/messages/fault"
)

// controlBucket holds what operators have said about destinations, a key for each.
const controlBucket = "penstock_control"

var errControl = fault.Define("bus.control_failed", fault.Retry,
	"check that the key-value bucket "+controlBucket+" exists and may be read and written: penstock topology apply")

// Control is what an operator has said about a destination. It holds for all
// processes, over restarts, until somebody says otherwise.
type Control struct {
	Destination string `json:"destination"`
	Paused      bool   `json:"paused"`
	// By, At and Reason say who said so, when and why.
	By     string    `json:"by"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason,omitempty"`
}

const controlPrefix = "destination."

// SetControl stores what an operator says. A destination that goes on keeps its key,
// so that it is known who had it go on.
func (b *Bus) SetControl(ctx context.Context, c Control) error {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	kv, err := b.bucket(ctx, controlBucket)
	if err != nil {
		return errControl.New(err, "open the bucket %s", controlBucket)
	}
	data, err := json.Marshal(c)
	if err != nil {
		return errControl.New(err, "write what was said about destination %s", c.Destination)
	}
	if _, err := kv.Put(ctx, controlPrefix+keyOf(c.Destination), data); err != nil {
		return errControl.New(err, "store what was said about destination %s", c.Destination)
	}
	return nil
}

// ForgetControl removes all that was said about a destination that is gone.
func (b *Bus) ForgetControl(ctx context.Context, destination string) error {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	kv, err := b.bucket(ctx, controlBucket)
	if err != nil {
		return errControl.New(err, "open the bucket %s", controlBucket)
	}
	if err := kv.Purge(ctx, controlPrefix+keyOf(destination)); err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
		return errControl.New(err, "forget what was said about destination %s", destination)
	}
	return nil
}

// Controls returns all that was said, by destination.
func (b *Bus) Controls(ctx context.Context) (map[string]Control, error) {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	all, found := map[string]Control{}, errors.New("found")
	err := b.watchControls(ctx, func(said map[string]Control) error {
		all = said
		return found
	})
	if errors.Is(err, found) {
		return all, nil
	}
	return nil, err
}

// FollowControls calls f with all that was said, by destination, first with what there
// is and then after each change, until ctx ends. f gets a map of its own.
func (b *Bus) FollowControls(ctx context.Context, f func(map[string]Control)) {
	for wait := 250 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := b.watchControls(ctx, func(said map[string]Control) error {
			wait = 250 * time.Millisecond
			f(said)
			return nil
		})
		if ctx.Err() != nil {
			return
		}
		b.log.Warn("what operators say about destinations is not to be had, trying on", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// watchControls calls f until it returns an error, ctx ends or the watch breaks.
func (b *Bus) watchControls(ctx context.Context, f func(map[string]Control) error) error {
	read := func(entry jetstream.KeyValueEntry) (c Control, err error) {
		err = json.Unmarshal(entry.Value(), &c)
		return c, err
	}
	return watchBucket(ctx, b, controlBucket, controlPrefix+">", errControl, read, func(byKey map[string]Control) error {
		said := make(map[string]Control, len(byKey))
		for _, c := range byKey {
			said[c.Destination] = c
		}
		return f(said)
	})
}

// questionSubject is where questions to all processes are put.
const questionSubject = "penstock.control.ask."

// Who answers a question does so at once: what has not come after askQuiet of silence
// does not come. A server far away gets askFirst for the first answer.
const (
	askFirst = time.Second
	askQuiet = 300 * time.Millisecond
)

// Answer answers a question that any process may put with [Bus.Ask], until ctx ends.
// f must be quick; what it returns is sent as it is.
func (b *Bus) Answer(ctx context.Context, question string, f func() []byte) error {
	sub, err := b.nc.Subscribe(questionSubject+token(question), func(m *nats.Msg) {
		_ = m.Respond(f()) // who asked has gone
	})
	if err != nil {
		return errConnect.New(err, "listen for the question %s", question)
	}
	<-ctx.Done()
	_ = sub.Unsubscribe()
	return nil
}

// Ask puts a question to all processes on the bus and returns what those say that
// answer within a moment; none is no error.
func (b *Bus) Ask(ctx context.Context, question string) ([][]byte, error) {
	inbox := b.nc.NewInbox()
	sub, err := b.nc.SubscribeSync(inbox)
	if err != nil {
		return nil, errConnect.New(err, "ask the processes on the bus")
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := b.nc.PublishRequest(questionSubject+token(question), inbox, nil); err != nil {
		return nil, errConnect.New(err, "ask the processes on the bus")
	}
	var answers [][]byte
	for wait := askFirst; ; wait = askQuiet {
		next, cancel := context.WithTimeout(ctx, wait)
		m, err := sub.NextMsgWithContext(next)
		cancel()
		switch {
		case errors.Is(err, nats.ErrNoResponders), errors.Is(err, context.DeadlineExceeded):
			return answers, context.Cause(ctx)
		case err != nil:
			return nil, errConnect.New(err, "ask the processes on the bus")
		case m.Header.Get("Status") == "503": // nobody listens
			return answers, nil
		}
		answers = append(answers, m.Data)
	}
}
