package messages

import "strings"

// Replay is what a frame says in its field replay of why it is there again. The zero
// Replay is that of a frame which is there for the first time.
type Replay struct {
	// Job made the frame.
	Job string
	// Destination is for whom alone the events are, "" for all.
	Destination string
}

// String is the field: the job, and where there is one @ and the destination.
func (r Replay) String() string {
	if r.Destination == "" {
		return r.Job
	}
	return r.Job + "@" + r.Destination
}

// ParseReplay takes the field apart.
func ParseReplay(field string) Replay {
	job, destination, _ := strings.Cut(field, "@")
	return Replay{job, destination}
}
