package topology

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/penstock/penstock/messages/fault"
)

var errReplays = fault.Define("bus.replay_failed", fault.Retry,
	"check that the server answers, and that its user may look at, and delete, the consumers of EVENTS: penstock topology show")

// ReplayPlace is how far the reader of a replay is.
type ReplayPlace struct {
	// Settled is the sequence up to which all is acknowledged.
	Settled uint64
	// Left is whether there is something that is not.
	Left bool
	// Found is whether there is such a reader.
	Found bool
}

// Replayed looks how far the reader of a replay is that reads what is before sequence
// until.
func (b *Bus) Replayed(ctx context.Context, job string, until uint64) (ReplayPlace, error) {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	c, err := b.js.Consumer(ctx, Events, replayPrefix+token(job))
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return ReplayPlace{Left: true}, nil
	}
	if err != nil {
		return ReplayPlace{}, errReplays.New(err, "look up the reader of replay %s", job)
	}
	info := c.CachedInfo()
	p := ReplayPlace{Settled: info.AckFloor.Stream, Found: true}
	// What it reads behind until is not meant, and may never end.
	p.Left = p.Settled+1 < until && (info.NumPending > 0 || info.NumAckPending > 0)
	if p.Left || p.Settled+1 >= until {
		return p, nil
	}
	// Its server may lag behind the stream: the leader has the last word.
	first, err := b.firstFor(ctx, Events, info, p.Settled)
	if err != nil {
		return ReplayPlace{}, errReplays.New(err, "look for what is left of replay %s", job)
	}
	p.Left = first > 0 && first < until
	return p, nil
}

// EndReplay deletes the reader of a replay, so that the event log is not kept for it any
// more. One that is not there is no error.
func (b *Bus) EndReplay(ctx context.Context, job string) error {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	err := b.js.DeleteConsumer(ctx, Events, replayPrefix+token(job))
	if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return errReplays.New(err, "delete the reader of replay %s", job)
	}
	return nil
}

// replaysEvery is how often the keeper looks for readers of replays that nobody needs.
// Tests have it look sooner.
var replaysEvery = time.Minute

// replaySilent is for how long the log is kept for a job whose process has died and that
// nobody else can do. It can go on later, from its checkpoint, with what is left.
const replaySilent = 24 * time.Hour

// tidyReplays deletes the readers of replays whose job is over, or not there any more.
func (b *Bus) tidyReplays(ctx context.Context, stream jetstream.Stream) error {
	var jobs []string
	list := stream.ListConsumers(ctx)
	for c := range list.Info() {
		if id, ok := strings.CutPrefix(c.Config.Durable, replayPrefix); ok {
			jobs = append(jobs, id)
		}
	}
	if err := list.Err(); err != nil || len(jobs) == 0 {
		return err
	}
	for _, id := range jobs {
		// A reader is made a moment before its job. One that is taken from a job which is
		// just made costs nothing: who takes the job makes it anew.
		j, found, err := b.getJob(ctx, id)
		if err != nil {
			return err
		}
		if found && !j.Over() && j.Silent(time.Now()) < replaySilent {
			continue
		}
		if err := b.EndReplay(ctx, id); err != nil {
			return err
		}
		b.log.Info("the event log is not kept for a replay any more", "job", id)
	}
	return nil
}
