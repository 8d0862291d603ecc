package parse

import (
	"context"
	"strings"
	"testing"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/topology"
)

// Text becomes documents by the header that came with its frame, and a bad line goes
// to quarantine with that header, without which nobody could read it.
// covers: F-21, F-0 (dead-letter per record)
func TestHeaderOfTheFrame(t *testing.T) {
	b := &bus{}
	c := Defaults()
	c.Linger, c.ThinLinger, c.Idle = 0, 0, 0
	p := start(t, c, 1, b)
	const header = "version srcaddr dstaddr end"
	in := frame(t, messages.Header{Source: "flow", Format: "vpcflow", Head: []byte(header)}, origin(1),
		"5 192.0.2.1 198.51.100.1 1767600058", "5 192.0.2.1", "5 192.0.2.2 198.51.100.2 1767600059")
	out := &topology.Recorder{}
	if err := p.Handle(context.Background(), in, out); err != nil {
		t.Fatal(err)
	}
	var docs []string
	for _, o := range b.events(t) {
		docs = append(docs, o.doc)
	}
	if all := strings.Join(docs, "\n"); len(docs) != 2 || !strings.Contains(all, `"srcaddr":"192.0.2.1"`) || !strings.Contains(all, `"dstaddr":"198.51.100.2"`) {
		t.Errorf("events %s", all)
	}
	bad := out.Quarantined()
	if len(bad) != 1 || string(bad[0].GetHeader()) != header || bad[0].GetRecord() != 1 || string(bad[0].GetPayload()) != "5 192.0.2.1" {
		t.Errorf("quarantined %v", bad)
	}
}
