package main

import (
	"encoding/json"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
)

// The endpoint tells what it has fed: each id once, and only when that is all.
func TestEndpointTellsWhatItFed(t *testing.T) {
	for _, tt := range []struct {
		name    string
		more    int
		enough  bool
		objects int
	}{
		{"first samples alone", 0, false, 0},
		{"with more", 8, false, 8},
		{"cut short", 8, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := cloud.Start(t.Context(), cloud.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			story := feed.DemoOf(3, 0.01)
			if err := c.CreateBucket(story.Bucket, cloud.BucketOptions{}); err != nil {
				t.Fatal(err)
			}
			o := endpointOptions{seed: 3, more: tt.more, pause: time.Millisecond}
			enough := make(chan os.Signal, 1)
			if tt.enough {
				o.pause = time.Hour
				enough <- syscall.SIGHUP
			}
			if err := o.goOn(t.Context(), c, &fed{Events: 7, Trail: []string{"a", "b"}}, enough); err != nil {
				t.Fatal(err)
			}
			want := map[string]bool{"a": true, "b": true}
			set := moreOf(3, tt.objects)
			for i := range tt.objects {
				if _, ok := c.Get(story.Bucket, set.Key(i)); !ok {
					t.Errorf("object %d is not there", i)
				}
				for id := range set.EventIDs(i) {
					want[id.String()] = true
				}
			}
			object, ok := c.Get(fedBucket, fedKey)
			if !ok {
				t.Fatal("it does not tell")
			}
			var got fed
			if err := json.Unmarshal(object.Body, &got); err != nil {
				t.Fatal(err)
			}
			if len(got.Trail) != len(want) || got.Events != len(want)-2+7 {
				t.Errorf("it tells of %d ids and %d events, want %d ids", len(got.Trail), got.Events, len(want))
			}
			for _, id := range got.Trail {
				if !want[id] {
					t.Errorf("%s was not fed", id)
				}
			}
		})
	}
}
