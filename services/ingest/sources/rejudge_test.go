package sources

import (
	"log/slog"
	"testing"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/framing"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/topology"
)

// An entry that makes penstock fail stays, and the process that judges it lives.
// covers: pain 3
func TestRejudgeWhatPanics(t *testing.T) {
	deps := Deps{Name: "feed", Format: "json", Log: slog.New(slog.DiscardHandler), Choose: func(string, string, []byte) (string, framing.Framing, string) {
		panic("a bug in a format")
	}}
	out := &topology.Recorder{}
	err := Rejudge(t.Context(), nil, deps, jobs.Rejudge{Job: "j", Entry: &messages.Quarantine{
		Id: "e", Code: errFails.Code, Holds: messages.Quarantine_HOLDS_SQS_BODY, Payload: []byte("{}"), Origin: &messages.Origin{Source: "feed"},
	}}, out)
	if fault.CodeOf(err) != errFails.Code || fault.ClassOf(err) != fault.Reject || len(out.Facts()) != 0 {
		t.Errorf("%v, facts %v", err, out.Facts())
	}
}
