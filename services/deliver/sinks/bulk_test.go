package sinks

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
)

// What a payload has is handed to the connection in one piece, no more than was asked for.
func TestPayloadsGoInOnePiece(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan []byte, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			got <- nil
			return
		}
		defer conn.Close()
		data, _ := io.ReadAll(conn)
		got <- data
	}()
	conn, err := dialBulk(context.Background(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	to, ok := conn.(io.ReaderFrom)
	if _, bulk := conn.(bulkConn); !ok || !bulk {
		t.Fatalf("a %T, which copies", conn)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	whole := &payload{data: data}
	cut := &payload{data: data}
	for _, c := range []struct {
		from  *payload
		limit int
	}{{whole, len(data)}, {cut, 1000}} {
		body := c.from.reader()
		limited := &io.LimitedReader{R: body, N: int64(c.limit)}
		if n, err := to.ReadFrom(limited); n != int64(c.limit) || err != nil || limited.N != 0 {
			t.Errorf("%d bytes written of %d, %d are left: %v", n, c.limit, limited.N, err)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
	}
	conn.Close()
	if want := append(bytes.Clone(data), data[:1000]...); !bytes.Equal(<-got, want) {
		t.Error("something else arrived")
	}
}

func TestNobodyAnswers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if conn, err := dialBulk(context.Background(), "tcp", l.Addr().String()); err == nil || conn != nil {
		t.Errorf("connected to nobody: %v, %v", conn, err)
	}
}
