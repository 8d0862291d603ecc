package formats

import (
	"slices"
	"strings"
	"testing"
)

// covers: pain 13, design section 8
func TestNews(t *testing.T) {
	column := func(names ...string) (news []News) {
		for _, n := range names {
			news = append(news, News{NewsColumn, n})
		}
		return news
	}
	const (
		vpcLine   = "2 123456789012 eni-1 10.0.0.1 10.0.0.2 443 50000 6 10 840 1767599000 1767599060 ACCEPT OK"
		vpcHeader = "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action log-status"
		alb       = `http 2026-01-05T07:44:54.186641Z app/my/50dc6c495c0c9188 192.0.2.7:2817 10.0.0.1:80 0.000 0.001 0.000 200 200 34 366 "GET http://x:80/ HTTP/1.1" "curl" - - arn:tg "Root=1" "-" "-" 0 2026-01-05T07:44:54.000000Z "forward" "-" "-" "10.0.0.1:80" "200" "-" "-" TID_1 "-" "-" "-"`
		trail     = `{"eventVersion":"1.11","eventTime":"2026-01-05T07:44:54Z","eventName":"GetUser","eventSource":"iam.amazonaws.com","awsRegion":"eu-west-1","eventID":"a","eventType":"AwsApiCall"}`
		finding   = `{"schemaVersion":"2.0","id":"a","updatedAt":"2026-01-05T07:44:54Z","accountId":"123456789012","region":"eu-west-1","type":"Recon:EC2/Portscan"}`
		waf       = `{"timestamp":1767599094000,"formatVersion":1,"webaclId":"arn:aws:wafv2:eu-west-1:123456789012:regional/webacl/a/b","action":"BLOCK"}`
		dns       = `{"version":"1.100000","account_id":"123456789012","region":"eu-west-1","query_timestamp":"2026-01-05T07:44:54Z","query_name":"x."}`
		asff      = `{"SchemaVersion":"2018-10-08","Id":"a","ProductArn":"arn:aws:securityhub:eu-west-1::product/aws/x","UpdatedAt":"2026-01-05T07:44:54Z","AwsAccountId":"123456789012"}`
		firewall  = `{"firewall_name":"f","event_timestamp":"1767599094","event":{"event_type":"alert","timestamp":"2026-01-05T07:44:54.000000+0000"}}`
		umbrella  = `"2026-01-05 17:48:41","host","host","10.0.0.1","192.0.2.7","Allowed","1 (A)","NOERROR","x.","Search","AD","AD","","1","DE","42"`
		cfHeader  = "#Fields: date time x-edge-location x-edge-request-id"
		cfLine    = "2026-01-05\t07:44:54\tFRA6-C1\tabc=="
	)
	tests := []struct {
		name, format string
		head         Head
		rec          string
		want         []News
	}{
		{"vpc flow as documented", "vpcflow", Head{Columns: []byte(vpcHeader)}, vpcLine, nil},
		{"vpc flow with a new column", "vpcflow", Head{Columns: []byte(vpcHeader + " flow-mood")}, vpcLine + " good", column("flow-mood")},
		{"vpc flow of a new version", "vpcflow", Head{Columns: []byte(vpcHeader)}, "11" + vpcLine[1:], []News{{NewsVersion, "11"}}},
		{"vpc flow, both", "vpcflow", Head{Columns: []byte(vpcHeader + " flow-mood")}, "11" + vpcLine[1:] + " good", []News{{NewsColumn, "flow-mood"}, {NewsVersion, "11"}}},
		{"vpc flow row", "vpcflow", Head{}, `{"version":2,"srcaddr":"10.0.0.1","dstaddr":"10.0.0.2","flow_mood":"good","mood_list":[1]}`, column("flow_mood", "mood_list")},
		{"cloudfront as documented", "cloudfront", Head{Columns: []byte(cfHeader)}, cfLine, nil},
		{"cloudfront with a new column", "cloudfront", Head{Columns: []byte(cfHeader + " x-edge-mood")}, cfLine + "\tgood", column("x-edge-mood")},
		{"cloudfront row", "cloudfront", Head{}, `{"date":"2026-01-05","time":"07:44:54","x-edge-location":"F","x-edge-mood":"good"}`, column("x-edge-mood")},
		{"load balancer as documented", "alb", Head{}, alb, nil},
		{"load balancer with more fields", "alb", Head{}, alb + ` "new" - 7`, column("column_34", "column_36")},
		{"trail as documented", "cloudtrail", Head{}, trail, nil},
		{"trail of a new minor version", "cloudtrail", Head{}, strings.Replace(trail, "1.11", "1.12", 1), []News{{NewsVersion, "1.12"}}},
		{"trail of a new major version", "cloudtrail", Head{}, strings.Replace(trail, "1.11", "2.0", 1), []News{{NewsVersion, "2.0"}}},
		{"trail of a new kind", "cloudtrail", Head{}, strings.Replace(trail, "AwsApiCall", "AwsMood", 1), []News{{NewsType, "AwsMood"}}},
		{"finding as documented", "guardduty", Head{}, finding, nil},
		{"finding of a new purpose", "guardduty", Head{}, strings.Replace(finding, "Recon", "Mood", 1), []News{{NewsType, "Mood"}}},
		{"finding of a new version", "guardduty", Head{}, strings.Replace(finding, "2.0", "3.0", 1), []News{{NewsVersion, "3.0"}}},
		{"waf as documented", "waf", Head{}, waf, nil},
		{"waf with a new action", "waf", Head{}, strings.Replace(waf, "BLOCK", "SMILE", 1), []News{{NewsType, "SMILE"}}},
		{"waf of a new version", "waf", Head{}, strings.Replace(waf, `"formatVersion":1`, `"formatVersion":2`, 1), []News{{NewsVersion, "2"}}},
		{"resolver as documented", "route53resolver", Head{}, dns, nil},
		{"resolver of a new version", "route53resolver", Head{}, strings.Replace(dns, "1.100000", "2.0", 1), []News{{NewsVersion, "2.0"}}},
		{"asff as documented", "securityhub", Head{}, asff, nil},
		{"asff of a new version", "securityhub", Head{}, strings.Replace(asff, "2018", "2028", 1), []News{{NewsVersion, "2028-10-08"}}},
		{"firewall as documented", "networkfirewall", Head{}, firewall, nil},
		{"firewall with a new type", "networkfirewall", Head{}, strings.Replace(firewall, "alert", "mood", 1), []News{{NewsType, "mood"}}},
		{"umbrella as documented", "umbrella", Head{Key: "p/dnslogs/2026-01-05/a.csv.gz"}, umbrella, nil},
		{"umbrella with more cells", "umbrella", Head{Key: "p/dnslogs/2026-01-05/a.csv.gz"}, umbrella + `,"","new"`, column("column18")},
		{"umbrella with a new column", "umbrella", Head{Key: "p/dnslogs/2026-01-05/a.csv.gz", Columns: []byte("Timestamp,Policy Identity,Mood")}, `"2026-01-05 17:48:41","host","good"`, column("mood")},
		{"umbrella of a new type", "umbrella", Head{Key: "p/moodlogs/2026-01-05/a.csv.gz"}, umbrella, []News{{NewsType, "moodlogs"}}},
		{"json knows no columns", "json", Head{}, `{"a":1}`, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := Open(t.Context(), tt.format, nil, Deps{Source: "s", Types: NewTypes(100)})
			if err != nil {
				t.Fatal(err)
			}
			dec := f.New()
			if s, ok := dec.(Starter); ok {
				if err := s.Start(tt.head); err != nil {
					t.Fatal(err)
				}
			}
			var d Doc
			for range 2 { // what is new stays new
				if err := dec.Decode([]byte(tt.rec), &d); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(d.New, tt.want) {
					t.Errorf("new: %v, want %v", d.New, tt.want)
				}
			}
			if n := testing.AllocsPerRun(100, func() { _ = dec.Decode([]byte(tt.rec)[:len(tt.rec)], &d) }); n > 1 { // the copy of the record
				t.Errorf("%v allocations for a record", n)
			}
		})
	}
}
