package topology

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/penstock/penstock/messages/fault"
)

// requestSubject is where requests to one process that serves them are put.
const requestSubject = "penstock.control.request."

// Headers of the answer to a request that failed.
const (
	headerCode  = "Penstock-Error-Code"
	headerError = "Penstock-Error"
)

var (
	// ErrNobody is that of a request which no process on the bus serves.
	ErrNobody = fault.Define("bus.nobody_serves", fault.Reject,
		"start a process that does: penstock run, or penstock console")
	errRequest = fault.Define("bus.request_failed", fault.Retry,
		"look at the reason, and at the log of the process that was asked")
)

// requestOf is the subject of requests of a name. The parts of a name stand between
// slashes, so that who may serve one kind, e.g. rejudge/…, can be kept from others.
func requestOf(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = token(p)
	}
	return requestSubject + strings.Join(parts, ".")
}

// Serve answers requests of a name, until ctx ends. Of several processes that serve it one
// gets each request. An error of f is sent to who asked; so is its code. f is called
// one request at a time.
func (b *Bus) Serve(ctx context.Context, name string, f func(ctx context.Context, data []byte) ([]byte, error)) error {
	subject := requestOf(name)
	sub, err := b.nc.QueueSubscribe(subject, "serve", func(m *nats.Msg) {
		reply := nats.NewMsg(m.Reply)
		data, err := f(ctx, m.Data)
		if err == nil && int64(len(data))+headerRoom > b.nc.MaxPayload() {
			err = errTooLarge.New(nil, "answer with %d bytes, the server takes %d", len(data), b.nc.MaxPayload())
		}
		if err != nil {
			reply.Header.Set(headerCode, fault.CodeOf(err))
			reply.Header.Set(headerError, oneLine(err.Error()))
		} else {
			reply.Data = data
		}
		_ = b.nc.PublishMsg(reply) // who asked has gone
	})
	if err != nil {
		return errConnect.New(err, "serve requests of %s", name)
	}
	<-ctx.Done()
	_ = sub.Unsubscribe()
	return nil
}

// Request has one process that serves a name do something, and returns its answer.
// Errors: bus.nobody_serves, bus.request_failed.
func (b *Bus) Request(ctx context.Context, name string, data []byte, within time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	m, err := b.nc.RequestWithContext(ctx, requestOf(name), data)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return nil, ErrNobody.New(nil, "ask for %s", name)
	case err != nil:
		return nil, errRequest.New(err, "ask for %s", name)
	case m.Header.Get(headerCode) != "":
		return nil, errRequest.New(errors.New(m.Header.Get(headerError)), "ask for %s", name)
	}
	return m.Data, nil
}

// oneLine makes s a legal value of a header.
func oneLine(s string) string {
	b := []byte(s[:min(len(s), 2048)])
	for i, c := range b {
		if c < ' ' {
			b[i] = ' '
		}
	}
	return string(b)
}
