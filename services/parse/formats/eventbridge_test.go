package formats

import (
	"testing"

	"github.com/penstock/penstock/messages"
)

// decodeAs decodes rec with the defaults of a format.
func decodeAs(t *testing.T, format, rec string) (d Doc) {
	t.Helper()
	if err := open(t, format, nil, Deps{}).Decode([]byte(rec), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// What comes by several ways is the same event by each of them, so that it passes
// dedupe once.
// covers: F-7 (CloudTrail id), F-8 (id), F-9, F-14, F-15, F-16, DEV-14
func TestSameEventByOtherWays(t *testing.T) {
	const (
		trail   = `{"eventVersion":"1.11","eventID":"00000000-0000-4000-8000-000000000001","eventTime":"2026-01-05T07:44:54Z","eventSource":"s3.amazonaws.com"}`
		finding = `{"schemaVersion":"2.0","accountId":"2","region":"us-east-1","id":"f","updatedAt":"2026-01-05T10:20:00.000Z"}`
		asff    = `{"SchemaVersion":"2018-10-08","Id":"f","ProductArn":"arn:aws:securityhub:us-east-2::product/aws/securityhub","AwsAccountId":"2","UpdatedAt":"2026-01-05T10:20:00.000Z"}`
		front   = `{"version":"0","id":"e","account":"1","region":"eu-west-1","time":"2026-01-05T07:44:54Z","detail-type":"`
		group   = `"logGroup":"/g"`
	)
	tests := []struct {
		name string
		ways map[string]string // format to record
		more []string          // further records of the first format
	}{
		{"CloudTrail", map[string]string{"cloudtrail": trail, "eventbridge": front + `AWS API Call via CloudTrail","source":"aws.s3","detail":` + trail + `}`}, nil},
		{"GuardDuty", map[string]string{"guardduty": finding, "eventbridge": front + `GuardDuty Finding","source":"aws.guardduty","detail":` + finding + `}`}, []string{
			front + `GuardDuty Finding","source":"aws.guardduty","detail":` + finding + `}`,
			`{"Id":"f","UpdatedAt":"2026-01-05T10:20:00.000Z","AccountId":"2"}`,
		}},
		{"Security Hub", map[string]string{"securityhub": asff, "eventbridge": front + `Security Hub Findings - Imported","source":"aws.securityhub","detail":{"findings":[` + asff + `]}}`}, []string{
			front + `Security Hub Findings - Imported","source":"aws.securityhub","detail":{"findings":[` + asff + `]}}`,
		}},
		{"CloudWatch Logs", map[string]string{"cwlogs": `{"eventId":"7","logGroup":"/g","logStreamName":"s","timestamp":1}`}, []string{
			`{"messageType":"DATA_MESSAGE",` + group + `,"logStream":"s","logEvents":[{"id":"7","timestamp":1,"message":"m"}]}`,
			`{"eventId":"7","logGroup":"arn:aws:logs:eu-west-1:1:log-group:/g:*","logStreamName":"s","timestamp":1}`,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var first Doc
			for format, rec := range tt.ways {
				d := decodeAs(t, format, rec)
				if !d.HasID || first.HasID && d.ID != first.ID || first.HasTime && d.Time != first.Time {
					t.Errorf("%s: %s, want id %s", format, d.render(), first.ID)
				}
				first = d
				for _, other := range tt.more {
					if format == "eventbridge" {
						continue
					}
					if d := decodeAs(t, format, other); d.ID != first.ID || d.Time != first.Time {
						t.Errorf("%s: %s, want id %s", other, d.render(), first.ID)
					}
				}
			}
		})
	}
}

// A person may send a finding twice on purpose, and an event with several findings
// that nobody took apart is none of them.
// covers: F-8 (custom action), DEV-49
func TestSecurityHubIDs(t *testing.T) {
	const f = `{"Id":"f","ProductArn":"p","UpdatedAt":"2026-01-05T10:20:00.000Z"}`
	action := func(id, findings string) string {
		return `{"id":"` + id + `","detail-type":"Security Hub Findings - Custom Action","source":"aws.securityhub","detail":{"findings":[` + findings + `]}}`
	}
	once, twice := decodeAs(t, "securityhub", action("e-1", f)), decodeAs(t, "securityhub", action("e-2", f))
	if once.ID == twice.ID || decodeAs(t, "eventbridge", action("e-1", f)).ID != once.ID {
		t.Error("the event's id is no part of a custom action's")
	}
	both := decodeAs(t, "securityhub", action("e-1", f+","+f))
	if want := messages.NewID(kindEventBridge, []byte("e-1")); both.ID != want || decodeAs(t, "eventbridge", action("e-1", f+","+f)).ID != want {
		t.Errorf("two findings in one event have the id %s, want that of the event", both.ID)
	}
	updated := decodeAs(t, "securityhub", `{"Id":"f","ProductArn":"p","UpdatedAt":"2026-01-05T10:21:00.000Z"}`)
	product := decodeAs(t, "securityhub", `{"Id":"f","ProductArn":"q","UpdatedAt":"2026-01-05T10:20:00.000Z"}`)
	plain := decodeAs(t, "securityhub", f)
	if plain.ID == updated.ID || plain.ID == product.ID {
		t.Error("a later state of a finding, or the same Id of another product, is taken for the same")
	}
}

// covers: F-7 (event type), DEV-12
func TestEventBridgeTypes(t *testing.T) {
	for source, want := range map[string]string{
		"aws.ssm": "ssm", "aws.s3": "s3", "aws.sts": "sts", "aws.backup": "backup", "aws.kms": "kms", "aws.tag": "tag", "aws.config": "config",
		"aws.logs": "logs", "aws.cloudtrail": "cloudtrail", "aws.partner/example.org/7": "aws_partner_example_org_7", "org.example.app": "org_example_app", "": "unknown",
	} {
		if d := decodeAs(t, "eventbridge", `{"source":"`+source+`"}`); d.Type != "cloud.aws.cloudwatch."+want {
			t.Errorf("%s: %s, want %s", source, d.Type, want)
		}
	}
}
