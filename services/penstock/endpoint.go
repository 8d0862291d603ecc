package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
)

// fedBucket has what the endpoint has fed, in the object fedKey, once it has fed all.
const (
	fedBucket = "penstock-demo-fed"
	fedKey    = "fed.json"
)

// fed is what was fed: to compare with what arrives.
type fed struct {
	// Events are the different events of all queues and buckets, those of the APIs not
	// counted.
	Events int `json:"events"`
	// Trail are the ids of those that CloudTrail has logged.
	Trail []string `json:"trail"`
}

type endpointOptions struct {
	listen string
	seed   uint64
	more   int
	pause  time.Duration
}

// newEndpoint is the demo's world as a process of its own: for docker compose.
func newEndpoint() *cobra.Command {
	o := endpointOptions{listen: "127.0.0.1:4566", seed: 1, pause: 700 * time.Millisecond}
	cmd := &cobra.Command{
		Use: "demo-endpoint", Args: exactly(0),
		Short: "Run the demo's AWS by itself, with its samples",
		Long: `Runs the AWS of the demo by itself: S3, SQS and the APIs, filled with the demo's
samples. It keeps all in memory. It is made for trying penstock out and checks no
signatures: do not let strangers reach it.

Sources read from it with its address as aws.endpoint_url and any key pair:
deploy/penstock.demo.yaml has one for each queue and bucket that it fills.

With --more, so many CloudTrail objects follow the first samples, one at a time, or
fewer when a SIGHUP comes. When all is there, the object fed.json in the bucket
penstock-demo-fed says what there is.`,
		Example: "  penstock demo-endpoint --listen 127.0.0.1:4566\n  penstock demo-endpoint --more 1000 --pause 200ms",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.more < 0 || o.pause < 0 {
				return usageError{errors.New("--more and --pause: use 0 or more")}
			}
			enough := make(chan os.Signal, 1)
			signal.Notify(enough, syscall.SIGHUP)
			defer signal.Stop(enough)
			c, err := cloud.Start(cmd.Context(), cloud.Options{Addr: o.listen})
			if err != nil {
				return err
			}
			defer c.Close()
			all, err := o.fill(cmd.Context(), c)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "S3, SQS and APIs at %s\n", c.URL())
			if err := o.goOn(cmd.Context(), c, all, enough); err != nil {
				return err
			}
			<-cmd.Context().Done()
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", o.listen, "address to listen at, host:port")
	f.Uint64Var(&o.seed, "seed", o.seed, "seed of the sample objects")
	f.IntVar(&o.more, "more", 0, "how many CloudTrail objects, of some 300 records, follow the first samples")
	f.DurationVar(&o.pause, "pause", o.pause, "how long to wait between them")
	return cmd
}

// fill puts the first samples in, and returns what they are.
func (o endpointOptions) fill(ctx context.Context, c *cloud.Cloud) (*fed, error) {
	story := feed.Demo(o.seed)
	if _, err := feed.Install(ctx, c, story); err != nil {
		return nil, err
	}
	filled, err := fillWorld(ctx, c, o.seed)
	if err != nil {
		return nil, err
	}
	all := &fed{}
	for id := range story.Events() {
		all.Trail = append(all.Trail, id.String())
	}
	all.Events = len(all.Trail)
	for i := range filled.systems {
		all.Events += filled.systems[i].Events
	}
	return all, c.Notify(story.Bucket, cloud.Notification{Queue: story.Queue})
}

// goOn adds objects one at a time until that is enough, then says what there is. A stop
// in between is none of its errors.
func (o endpointOptions) goOn(ctx context.Context, c *cloud.Cloud, all *fed, enough <-chan os.Signal) error {
	known := map[string]bool{}
	for _, id := range all.Trail {
		known[id] = true
	}
	tick := time.NewTicker(max(o.pause, time.Millisecond))
	defer tick.Stop()
more:
	for object := range moreOf(o.seed, o.more).All() {
		select {
		case <-ctx.Done():
			return nil
		case <-enough:
			break more
		case <-tick.C:
		}
		if _, err := c.Put(object.Bucket, object.Key, cloud.Object{Body: object.Body}); err != nil {
			return err
		}
		for _, id := range object.EventIDs {
			if id := id.String(); !known[id] {
				known[id] = true
				all.Trail = append(all.Trail, id)
				all.Events++
			}
		}
	}
	if err := c.CreateBucket(fedBucket, cloud.BucketOptions{}); err != nil {
		return err
	}
	var body bytes.Buffer
	if err := json.NewEncoder(&body).Encode(all); err != nil {
		return err
	}
	_, err := c.Put(fedBucket, fedKey, cloud.Object{Body: body.Bytes()})
	return err
}

// moreOf are objects after those of the story, of several sizes.
func moreOf(seed uint64, objects int) *feed.Set {
	return feed.CloudTrail(feed.Options{Seed: seed + 1, Objects: objects, RecordsPerObject: feed.Sizes(200, 20, 1000, 5), DuplicateShare: 0.03})
}
