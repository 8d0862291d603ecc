package jobs

import (
	"bytes"
	"strings"

	"github.com/penstock/penstock/messages"
)

// RejudgeOf is the name of the request that a process answers which has a source: to
// judge anew what the source refused.
func RejudgeOf(source string) string { return "rejudge/" + source }

// Rejudge asks for that.
type Rejudge struct {
	// Job wants it.
	Job string
	// Allow lifts the limit over which the entry failed.
	Allow bool
	Entry *messages.Quarantine
}

// Encode is the request: a line of words, and the entry as it was stored. An entry may
// be nearly as large as the bus carries, so nothing here makes it larger.
func (r Rejudge) Encode() []byte {
	head := r.Job + " judge\n"
	if r.Allow {
		head = r.Job + " allow\n"
	}
	return append([]byte(head), messages.EncodeQuarantine(r.Entry)...)
}

// DecodeRejudge reads a request.
func DecodeRejudge(data []byte) (Rejudge, error) {
	head, entry, ok := bytes.Cut(data, []byte{'\n'})
	if !ok {
		return Rejudge{}, errSpec.New(nil, "read a request to judge an entry of the quarantine")
	}
	job, how, _ := strings.Cut(string(head), " ")
	q, err := messages.DecodeQuarantine(entry)
	return Rejudge{Job: job, Allow: how == "allow", Entry: q}, err
}

// SourcesQuestion asks every process which sources it has.
const SourcesQuestion = "sources"

// WriteSources is what a stage of a process answers to that.
func WriteSources(stage string, names []string) []byte {
	return []byte(stage + "\n" + strings.Join(names, "\n"))
}

// ReadSources reads such an answer.
func ReadSources(answer []byte) (stage string, names []string, ok bool) {
	stage, list, ok := strings.Cut(string(answer), "\n")
	if list == "" {
		return stage, nil, ok
	}
	return stage, strings.Split(list, "\n"), ok
}
