package topology

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
)

// No password or token in the address of a server is in what is said of it.
func TestAddressesAreShownWithoutPasswords(t *testing.T) {
	for _, s := range []string{"nats://u:CANARY@a:4222", "CANARY@a:4222", "u:CANARY@a:4222,nats://CANARY@b", "tls://u:p@CANARY@a:4222"} {
		if got := redactURL(s); strings.Contains(got, "CANARY") || !strings.Contains(got, "a:4222") {
			t.Errorf("%s becomes %s", s, got)
		}
	}
	_, err := nats.Connect("nats://u:CANARY@a:port")
	if err == nil || !strings.Contains(err.Error(), "CANARY") {
		t.Fatalf("the client quotes no address any more: %v", err)
	}
	if got := withoutURL(err); strings.Contains(got.Error(), "CANARY") {
		t.Errorf("shown is %v", got)
	}
}
