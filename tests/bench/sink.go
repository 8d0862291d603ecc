package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// sink is the HTTP receiver that events are delivered to. It counts lines and keeps
// nothing of them.
type sink struct {
	url    string
	lines  atomic.Int64
	bytes  atomic.Int64      // of bodies
	seen   func(body []byte) // called with each request's body, before it is confirmed; nil: none
	server *http.Server
	spare  sync.Pool
}

// startSink listens on a free port of the loopback interface. seen, which may be nil,
// may be called concurrently, and must not keep the body.
func startSink(seen func(body []byte)) (*sink, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &sink{url: "http://" + l.Addr().String() + "/", seen: seen}
	s.spare.New = func() any { return new(make([]byte, 256<<10)) }
	s.server = &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(s.serve)}
	go func() { _ = s.server.Serve(l) }()
	return s, nil
}

func (s *sink) serve(w http.ResponseWriter, r *http.Request) {
	if s.seen != nil {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		s.seen(body)
		s.bytes.Add(int64(len(body)))
		s.lines.Add(int64(bytes.Count(body, []byte{'\n'})))
		w.WriteHeader(http.StatusNoContent)
		return
	}
	buf := s.spare.Get().(*[]byte) //nolint:forcetypeassert // the pool holds nothing else
	defer s.spare.Put(buf)
	n := int64(0)
	for {
		k, err := r.Body.Read(*buf)
		s.bytes.Add(int64(k))
		n += int64(bytes.Count((*buf)[:k], []byte{'\n'}))
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return
		}
	}
	s.lines.Add(n)
	w.WriteHeader(http.StatusNoContent)
}

func (s *sink) close() { _ = s.server.Close() }
