package feed

import (
	"reflect"
	"testing"

	"github.com/penstock/penstock/services/demo/cloud"
)

func TestSystems(t *testing.T) {
	c, err := cloud.Start(t.Context(), cloud.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	systems, again := Systems(7, 500), Systems(7, 500)
	for i, s := range systems {
		if !reflect.DeepEqual(s, again[i]) {
			t.Errorf("%s: the same seed gives another sample", s.Name)
		}
		records := 0
		for _, o := range s.Objects {
			records += o.Records
		}
		if s.Events < 50 || s.Bucket != "" && records != s.Events || (s.Bucket == "") != (len(s.Objects) == 0) {
			t.Errorf("%s: %d events, %d records in %d objects of bucket %q", s.Name, s.Events, records, len(s.Objects), s.Bucket)
		}
		if err := s.Install(t.Context(), c); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
		if n := c.Objects(s.Bucket); s.Bucket != "" && n != len(s.Objects) {
			t.Errorf("%s: %d objects in the bucket, want %d", s.Name, n, len(s.Objects))
		}
		if s.Queue != "" {
			c.FlushNotices()
			if n := c.Queue(s.Queue).Visible; n != max(len(s.Objects), len(s.Bodies)) {
				t.Errorf("%s: %d messages in the queue", s.Name, n)
			}
		}
	}
	if reflect.DeepEqual(Systems(8, 500)[0].Objects, systems[0].Objects) {
		t.Error("another seed gives the same sample")
	}
}
