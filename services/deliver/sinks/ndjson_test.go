package sinks

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/golden"
)

// trailEvent has the size and the shape of a usual CloudTrail event.
var trailEvent = `{"eventVersion":"1.08","userIdentity":{"type":"AssumedRole","principalId":"AROAEXAMPLE:session","arn":"arn:aws:sts::123456789012:assumed-role/Example/session","accountId":"123456789012","accessKeyId":"ASIAEXAMPLE","sessionContext":{"sessionIssuer":{"type":"Role","principalId":"AROAEXAMPLE","arn":"arn:aws:iam::123456789012:role/Example","accountId":"123456789012","userName":"Example"},"webIdFederationData":{},"attributes":{"creationDate":"2026-01-05T10:00:00Z","mfaAuthenticated":"false"}}},"eventTime":"2026-01-05T10:11:12Z","eventSource":"s3.amazonaws.com","eventName":"GetObject","awsRegion":"eu-west-1","sourceIPAddress":"192.0.2.10","userAgent":"[aws-sdk-go-v2/1.30]","requestParameters":{"bucketName":"example-bucket","Host":"example-bucket.s3.eu-west-1.amazonaws.com","key":"` + strings.Repeat("some/long/key/", 20) + `"},"responseElements":null,"additionalEventData":{"SignatureVersion":"SigV4","CipherSuite":"TLS_AES_128_GCM_SHA256","bytesTransferredIn":0,"AuthenticationMethod":"AuthHeader","x-amz-id-2":"abcdefghijklmnopqrstuvwxyz","bytesTransferredOut":1234},"requestID":"ABCDEF0123456789","eventID":"11111111-2222-3333-4444-555555555555","readOnly":true,"eventType":"AwsApiCall","managementEvent":false,"recipientAccountId":"123456789012","eventCategory":"Data"}`

// covers: LIM-26
func TestFormats(t *testing.T) {
	events := []*Event{
		event(1, `{"a":1}`),
		{ID: messages.NewID([]byte("x")), Type: "t", Doc: []byte(`[1,2]`)},
		event(2, "{\n\t\"pretty\": [ 1, 2 ],\r\n\t\"text\": \"two  words\"\n}\n"),
		{ID: messages.NewID([]byte("y")), Type: "quo\"te", Source: "back\\slash", Account: "line\nbreak", Region: "\xff", Time: 1, Doc: []byte(`{"\u00e4":"ä<>&"}`)},
		{ID: messages.NewID([]byte("z"))},
		{ID: messages.NewID([]byte("w")), Time: time.Date(2026, 1, 5, 1, 2, 3, 0, time.FixedZone("", 3600)).UnixNano(), Doc: []byte(`"text"`)},
	}
	for _, format := range []Format{Envelope, Document} {
		var out []byte
		for _, e := range events {
			out = format.appendLine(out, e)
		}
		golden.Check(t, "testdata/"+string(format)+".ndjson", out)
	}
}

// FuzzEnvelope: an envelope is one line of JSON in which id, names and document
// come back.
func FuzzEnvelope(f *testing.F) {
	f.Add("a.b", "src", `{"a": "b"}`, int64(1))
	f.Add("\x00\"", "\xff", "{\n\"a\":\n[1,\r\n\"x\"]}", int64(-1))
	f.Add("", "", `"`+strings.Repeat("long ", 3000)+`"`, int64(0))
	f.Fuzz(func(t *testing.T, typ, source, doc string, at int64) {
		if !json.Valid([]byte(doc)) {
			return
		}
		valid := strings.ToValidUTF8(doc, "?") // as the batcher hands it over
		line := Envelope.appendLine(nil, &Event{Type: typ, Source: source, Time: at, Doc: []byte(valid)})
		if bytes.IndexByte(line, '\n') != len(line)-1 {
			t.Fatalf("%q is not one line", line)
		}
		var got struct {
			ID, Type, Source string
			Time             *time.Time
			Event            json.RawMessage
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if got.ID != (messages.ID{}).String() || strings.ToValidUTF8(typ, "") != strings.ReplaceAll(got.Type, "\uFFFD", "") && !strings.Contains(typ, "\uFFFD") {
			t.Fatalf("%q: id %q, type %q of %q", line, got.ID, got.Type, typ)
		}
		if (got.Time == nil) != (at == 0) || got.Time != nil && got.Time.UnixNano() != at {
			t.Fatalf("time %v of %d", got.Time, at)
		}
		var want, have bytes.Buffer
		if json.Compact(&want, []byte(valid)) != nil || json.Compact(&have, got.Event) != nil || want.String() != have.String() {
			t.Fatalf("document %q of %q", got.Event, valid)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	for _, format := range []Format{Envelope, Document} {
		b.Run(string(format), func(b *testing.B) {
			e := event(1, trailEvent)
			buf := format.appendLine(nil, e)
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				buf = format.appendLine(buf[:0], e)
			}
			if !bytes.Contains(buf, []byte(trailEvent)) {
				b.Fatalf("%q", buf)
			}
		})
	}
}
