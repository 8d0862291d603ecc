package main

import (
	"bytes"
	"io"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/parse"
	"github.com/penstock/penstock/services/parse/formats"
	"github.com/penstock/penstock/topology"
)

// The floor posts of rows of text what penstock delivers of them, byte by byte: it is not
// the floor of this work otherwise.
func TestFloorPostsTheSameLines(t *testing.T) {
	for _, set := range sets {
		if set.Layout == nil {
			continue
		}
		t.Run(set.Name, func(t *testing.T) {
			w, err := set.Make(0.01)
			if err != nil {
				t.Fatal(err)
			}
			z, err := gzip.NewReader(bytes.NewReader(w.Objects[0]))
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(z)
			if err != nil {
				t.Fatal(err)
			}
			const account, region = "111122223333", "eu-west-3"
			const etag = "0123456789abcdef0123456789abcdef"
			all := bytes.Split(bytes.TrimSuffix(text, []byte{'\n'}), []byte{'\n'})
			var header []byte
			if set.Header > 0 {
				header = all[set.Header-1]
			}
			rows := all[set.Header:][:1000] // one frame of each set
			want := delivered(t, set.Layout.Type, header, rows, &messages.Origin{
				Pull: messages.NewPull("1"), Source: source, Bucket: bucket, Key: w.Keys[0], Etag: etag, Account: account, Region: region,
			})
			if len(want) != len(rows) || len(rows) == 0 {
				t.Fatalf("%d rows, %d delivered", len(rows), len(want))
			}
			made := newLineMaker(set.Layout, account, region)
			made.begin(bucket, w.Keys[0], `"`+etag+`"`)
			for i, row := range rows {
				if got := made.line(nil, row); !bytes.Equal(got, want[i]) {
					t.Fatalf("row %d: the floor posts\n%s\npenstock\n%s", i, got, want[i])
				}
			}
		})
	}
}

// delivered are the lines that the destination http sends of an object's rows, which go to
// a table.
func delivered(t *testing.T, table string, header []byte, rows [][]byte, o *messages.Origin) (lines [][]byte) {
	t.Helper()
	format, _, _ := formats.Choose(formats.Auto, o.GetKey(), rows[0])
	b := messages.NewBuilder(messages.Header{Source: source, Format: format, Head: header})
	b.Origin(o)
	for _, row := range rows {
		b.AddRecord(row)
	}
	out := &topology.Recorder{}
	c := parse.Defaults()
	c.GroupEvents = messages.MaxCount
	stage, err := parse.New(c, parse.Deps{NewOutbox: func() topology.Outbox { return out }, Lanes: 1, Window: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer stage.Close()
	data := b.Encode(nil)
	v, err := messages.DecodeFrame(data)
	if err == nil {
		err = stage.Handle(t.Context(), topology.In[messages.View]{Value: v, Data: data, Attempt: 1}, &topology.Recorder{})
	}
	if err != nil {
		t.Fatal(err)
	}
	cfg, _ := sinks.Catalog.Defaults("http")
	web := *cfg.(*sinks.HTTPConfig) //nolint:forcetypeassert // what its file defines
	web.URL = "http://127.0.0.1/"
	sink, err := sinks.Catalog.Open(t.Context(), "http", &web, sinks.Deps{Destination: "web-0"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sink.Close() }()
	for _, m := range out.Messages() {
		lines = append(lines, linesOf(t, table, m.Data, sink)...)
	}
	return lines
}

// linesOf are the lines of one frame of events.
func linesOf(t *testing.T, table string, data []byte, sink sinks.Sink) (lines [][]byte) {
	t.Helper()
	var columns messages.Columns
	v, err := messages.DecodeFrame(data)
	if err == nil {
		err = v.Columns(&columns)
	}
	if err != nil {
		t.Fatal(err)
	}
	body, err := v.Body(nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, size := range columns.Lengths {
		lines = append(lines, sink.Append(nil, &sinks.Event{
			ID: v.ID(i), Type: table, Source: v.Source(), Time: columns.Times[i], Doc: body[:size],
			Account: columns.Accounts[columns.AccountOf[i]], Region: columns.Regions[columns.RegionOf[i]],
		}))
		body = body[size:]
	}
	return lines
}
