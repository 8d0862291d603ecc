package topology

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// covers: design section 6
func TestRequest(t *testing.T) {
	e := testServer(t, t.TempDir(), 64<<20)
	bus := testConnect(t, e, Options{Name: "asks"})
	if _, err := bus.Request(t.Context(), "sums", nil, 5*time.Second); !errors.Is(err, ErrNobody) {
		t.Errorf("nobody serves: %v", err)
	}
	var served [2]atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	for i := range served {
		other := testConnect(t, e, Options{Name: "serves"})
		go func() {
			done <- other.Serve(ctx, "sums", func(_ context.Context, data []byte) ([]byte, error) {
				served[i].Add(1)
				switch string(data) {
				case "bad":
					return nil, errTooLarge.New(errors.New("line\r\nPenstock-Injected: x"), "add")
				case "long":
					return make([]byte, bus.nc.MaxPayload()), nil
				}
				return append([]byte("sum of "), data...), nil
			})
		}()
	}
	defer func() { cancel(); <-done; <-done }()
	for deadline := time.Now().Add(time.Minute); ; {
		if _, err := bus.Request(t.Context(), "sums", []byte("0"), time.Second); err == nil || time.Now().After(deadline) {
			break
		}
	}
	const n = 100
	for range n {
		if reply, err := bus.Request(t.Context(), "sums", []byte("1"), time.Minute); err != nil || string(reply) != "sum of 1" {
			t.Fatalf("%q, %v", reply, err)
		}
	}
	if sum := served[0].Load() + served[1].Load(); sum > n+10 {
		t.Errorf("%d requests were served %d times", n, sum)
	}
	for what, want := range map[string]string{"bad": "bus.message_too_large", "long": "the server takes"} {
		if _, err := bus.Request(t.Context(), "sums", []byte(what), 5*time.Second); !errors.Is(err, errRequest) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
