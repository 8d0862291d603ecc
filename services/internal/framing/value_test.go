package framing

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
)

// cloudTrail is a record of about 1.4 KB with the shape of a real one.
func cloudTrail(i int) string {
	return fmt.Sprintf(`{"eventVersion":"1.11","userIdentity":{"type":"AssumedRole","principalId":"AROAEXAMPLE%04d:session-%d","arn":"arn:aws:sts::123456789012:assumed-role/app-role-%d/session-%d","accountId":"123456789012","accessKeyId":"ASIAEXAMPLE%08d","sessionContext":{"sessionIssuer":{"type":"Role","principalId":"AROAEXAMPLE%04d","arn":"arn:aws:iam::123456789012:role/app-role-%d","accountId":"123456789012","userName":"app-role-%d"},"attributes":{"creationDate":"2026-01-05T07:00:00Z","mfaAuthenticated":"false"}}},"eventTime":"2026-01-05T07:44:%02dZ","eventSource":"s3.amazonaws.com","eventName":"GetObject","awsRegion":"us-east-1","sourceIPAddress":"192.0.2.%d","userAgent":"[aws-sdk-go-v2/1.30.3 os/linux lang/go#1.22.5 md/GOOS#linux md/GOARCH#amd64 api/s3#1.58.2]","requestParameters":{"bucketName":"log-bucket-a","Host":"log-bucket-a.s3.us-east-1.amazonaws.com","key":"data/2026/01/05/part-%05d.parquet"},"responseElements":null,"additionalEventData":{"SignatureVersion":"SigV4","CipherSuite":"TLS_AES_128_GCM_SHA256","bytesTransferredIn":0,"AuthenticationMethod":"AuthHeader","x-amz-id-2":"dGhpcyBpcyBub3QgYSByZWFsIGlk%05d=","bytesTransferredOut":%d},"requestID":"REQ%013d","eventID":"00000000-0000-4000-8000-%012d","readOnly":true,"resources":[{"type":"AWS::S3::Object","ARN":"arn:aws:s3:::log-bucket-a/data/2026/01/05/part-%05d.parquet"},{"accountId":"123456789012","type":"AWS::S3::Bucket","ARN":"arn:aws:s3:::log-bucket-a"}],"eventType":"AwsApiCall","managementEvent":false,"recipientAccountId":"123456789012","eventCategory":"Data","tlsDetails":{"tlsVersion":"TLSv1.3","cipherSuite":"TLS_AES_128_GCM_SHA256","clientProvidedHostHeader":"log-bucket-a.s3.us-east-1.amazonaws.com"}}`,
		i%10000, i, i%50, i, i, i%10000, i%50, i%50, i%60, i%250, i, i, i*37, i, i, i)
}

func cloudTrailFile(n int) []byte {
	var sb strings.Builder
	sb.WriteString(`{"Records":[`)
	for i := range n {
		if i > 0 {
			sb.WriteByte(',')
		}
		sb.WriteString(cloudTrail(i))
	}
	sb.WriteString(`]}`)
	return []byte(sb.String())
}

func BenchmarkSplitter(b *testing.B) {
	const records = 2000
	file := cloudTrailFile(records)
	lines := []byte(strings.ReplaceAll(string(file[len(`{"Records":[`):len(file)-2]), `},{"eventVersion"`, "}\n{\"eventVersion\""))
	for _, bb := range []struct {
		name string
		f    Framing
		in   []byte
	}{
		{"Array", Framing{Kind: Array, Key: "Records"}, file},
		{"Values", Framing{Kind: Values}, lines},
		{"Lines", Framing{Kind: Lines}, lines},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.SetBytes(int64(len(bb.in)))
			b.ReportAllocs()
			s, r := New(bb.f, nil, Limits{}), bytes.NewReader(nil)
			for b.Loop() {
				r.Reset(bb.in)
				s.Reset(bb.f, r, Limits{})
				n, err := 0, error(nil)
				for ; err == nil; n++ {
					_, err = s.Next()
				}
				if n--; n != records || err != io.EOF {
					b.Fatalf("%d records, %v", n, err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/records, "ns/record")
		})
	}
}

func BenchmarkValue(b *testing.B) {
	doc := []byte(cloudTrail(7))
	if !json.Valid(doc) {
		b.Fatal("the sample is not JSON")
	}
	b.SetBytes(int64(len(doc)))
	var v value
	for b.Loop() {
		v.reset(MaxDepth)
		if end, got := v.run(doc, 0, true); end != len(doc) || got != done {
			b.Fatalf("stopped at %d with %d: %s", end, got, v.reason)
		}
	}
}
