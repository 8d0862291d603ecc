package console

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/messages/fault"
)

var errStreams = fault.Define("console.too_many_streams", fault.Retry,
	"close some pages of this console, or wait: as many browsers follow what is live as are allowed")

// Bounds of what is live.
const (
	maxStreams = 128              // browsers at one time
	maxQueue   = 16               // events that wait for one browser
	beatEvery  = 15 * time.Second // so that proxies and we see that the other side lives
	pushTime   = 5 * time.Second  // for one event to be taken
)

// hub passes on what is published to those who follow.
type hub struct {
	mu     sync.Mutex
	topics map[string]map[chan pushed]bool
	open   int
}

type pushed struct{ event, html string }

func (h *hub) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open >= maxStreams {
		return false
	}
	h.open++
	streamsOpen.Set(float64(h.open))
	return true
}

func (h *hub) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open--
	streamsOpen.Set(float64(h.open))
}

func (h *hub) join(topic string) (chan pushed, func()) {
	ch := make(chan pushed, maxQueue)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.topics == nil {
		h.topics = map[string]map[chan pushed]bool{}
	}
	if h.topics[topic] == nil {
		h.topics[topic] = map[chan pushed]bool{}
	}
	h.topics[topic][ch] = true
	return ch, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.drop(topic, ch)
	}
}

// drop ends a subscription, under the lock.
func (h *hub) drop(topic string, ch chan pushed) {
	if !h.topics[topic][ch] {
		return
	}
	delete(h.topics[topic], ch)
	if len(h.topics[topic]) == 0 {
		delete(h.topics, topic)
	}
	close(ch)
}

// publish sends to all who follow a topic. A client that does not keep up loses its
// connection, and comes back by itself.
func (c *Console) publish(topic, event, html string) {
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	for ch := range c.hub.topics[topic] {
		select {
		case ch <- pushed{event, html}:
		default:
			c.hub.drop(topic, ch)
		}
	}
}

// followed tells whether anybody follows a topic: what nobody sees need not be made.
func (c *Console) followed(topic string) bool {
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	return len(c.hub.topics[topic]) > 0
}

// follow answers with server-sent events: what publish sends to the topic.
func (r *request) follow(topic string) error {
	return r.stream(func(ctx context.Context, send func(event, html string) error) error {
		ch, leave := r.c.hub.join(topic)
		defer leave()
		for {
			select {
			case <-ctx.Done():
				return nil
			case p, ok := <-ch:
				if !ok {
					return nil
				}
				if err := send(p.event, p.html); err != nil {
					return err
				}
			}
		}
	})
}

// untimed lifts the bound on the time in which a request has to come in: net/http takes
// it for the client's going away while an answer is still being written.
func untimed(out *http.ResponseController) { _ = out.SetReadDeadline(time.Time{}) }

// stream answers with server-sent events: those that f sends, until it returns, the
// client goes, its login ends or the console stops. event is what sse-swap names. send
// waits for the client at most a few seconds, and then fails: return its error. send may
// be called concurrently.
func (r *request) stream(f func(ctx context.Context, send func(event, html string) error) error) error {
	if !r.c.hub.enter() {
		return errStreams.New(nil, "follow what is live")
	}
	defer r.c.hub.leave()
	r.leave() // a stream has a bound of its own
	ctx, cancel := context.WithCancel(r.base)
	defer cancel()
	h := r.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	out := http.NewResponseController(r.w)
	untimed(out)
	var mu sync.Mutex
	write := func(text string) error {
		mu.Lock()
		defer mu.Unlock()
		if err := out.SetWriteDeadline(time.Now().Add(pushTime)); err != nil {
			return err
		}
		if _, err := r.w.Write([]byte(text)); err != nil {
			cancel()
			return err
		}
		return out.Flush()
	}
	// A browser that lost its connection comes back after this many milliseconds.
	if err := write("retry: 2000\n\n"); err != nil {
		return nil // it has gone
	}
	done := make(chan struct{})
	defer func() { cancel(); <-done }()
	go func() {
		defer close(done)
		beat := time.NewTicker(beatEvery)
		defer beat.Stop()
		defer cancel()
		for {
			select {
			case <-ctx.Done():
				return
			case <-r.c.stopping:
				return
			case <-beat.C:
				if !r.c.gate.alive(r.Request) || write(": beat\n\n") != nil {
					return
				}
			}
		}
	}()
	err := f(ctx, func(event, html string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return write("event: " + event + "\ndata: " + strings.ReplaceAll(strings.ReplaceAll(html, "\r", ""), "\n", "\ndata: ") + "\n\n")
	})
	if err != nil && ctx.Err() == nil {
		r.c.log.Debug("a stream of the console ended", "path", r.URL.Path, "err", err)
	}
	return nil // the answer has begun: there is nothing else to say
}
