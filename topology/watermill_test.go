package topology

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
)

// These pin what Watermill 1.5.1 does and what we therefore do not use, or do
// ourselves. One that fails after an update is good news: read what it guards.

type closeCounter struct {
	message.Publisher
	closed int
}

func (c *closeCounter) Close() error { c.closed++; return nil }

// A handler that stops closes its publisher, also one that others use: our
// handlers publish through the outbox, and Publisher.Close closes nothing.
func TestWatermillStoppedHandlerClosesItsPublisher(t *testing.T) {
	pubsub := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	shared := &closeCounter{Publisher: pubsub}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	pass := func(m *message.Message) ([]*message.Message, error) { return nil, nil }
	one := router.AddHandler("one", "a", pubsub, "b", shared, pass)
	router.AddHandler("two", "c", pubsub, "d", shared, pass)
	go func() { _ = router.Run(t.Context()) }()
	<-router.Running()
	one.Stop()
	<-one.Stopped()
	await(t, "the shared publisher is closed", func() bool { return shared.closed == 1 })
	if err := (&Publisher{}).Close(); err != nil {
		t.Errorf("ours: %v", err)
	}
	_ = router.Close()
}

// MaxRetries 0 is no retry at all, and setting OnRetryHook or ShouldRetry
// stretches the pauses. Pauses and attempts are the worker's business instead,
// through the server, so that they outlive the process.
func TestWatermillRetryZeroMeansNone(t *testing.T) {
	calls := 0
	h := middleware.Retry{MaxRetries: 0, InitialInterval: time.Nanosecond}.Middleware(func(*message.Message) ([]*message.Message, error) {
		calls++
		return nil, errors.New("no")
	})
	if _, err := h(message.NewMessage("1", nil)); err == nil || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

// Run returns nil although the drain was late; only Close tells. Bus.route
// therefore returns what Close says.
func TestWatermillLateDrainShowsOnlyInClose(t *testing.T) {
	pubsub := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 50 * time.Millisecond}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	inside, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	router.AddConsumerHandler("slow", "a", pubsub, func(*message.Message) error { close(inside); <-release; return nil })
	ended := make(chan error, 1)
	go func() { ended <- router.Run(t.Context()) }()
	<-router.Running()
	go func() { _ = pubsub.Publish("a", message.NewMessage("1", nil)) }()
	<-inside
	if err := router.Close(); err == nil {
		t.Error("Close said nothing of the late drain")
	}
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// A stop ends the context of messages in hand, which would cut the publish that
// makes finished work durable. Our subscriber gives them one of their own.
func TestWatermillStopEndsContextsOfMessagesInHand(t *testing.T) {
	pubsub := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 5 * time.Second}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	inside, dead := make(chan struct{}), make(chan error, 1)
	router.AddConsumerHandler("slow", "a", pubsub, func(m *message.Message) error {
		close(inside)
		select {
		case <-m.Context().Done():
			dead <- m.Context().Err()
		case <-time.After(5 * time.Second):
			dead <- nil
		}
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { _ = router.Run(ctx) }()
	<-router.Running()
	go func() { _ = pubsub.Publish("a", message.NewMessage("1", nil)) }()
	<-inside
	cancel()
	if err := <-dead; err == nil {
		t.Error("the context lived on: our own may not be needed any more")
	}
	_ = router.Close()
}
