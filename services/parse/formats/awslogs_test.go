package formats

import "testing"

func TestPlacesOfAWSLogs(t *testing.T) {
	tests := []struct{ format, key, account, region string }{
		{"guardduty", "p/AWSLogs/123456789012/GuardDuty/us-east-1/2026/01/05/x.jsonl.gz", "123456789012", "us-east-1"},
		{"waf", "AWSLogs/123456789012/WAFLogs/us-east-1/acl/2026/x.log.gz", "123456789012", "us-east-1"},
		{"waf", "AWSLogs/123456789012/WAFLogs/cloudfront/acl/2026/x.log.gz", "123456789012", ""},
		{"route53resolver", "AWSLogs/123456789012/vpcdnsquerylogs/vpc-0123456789abcdef0/2026/x.log.gz", "123456789012", ""},
		{"networkfirewall", "p/AWSLogs/123456789012/network-firewall/flow/us-gov-west-1/fw-a/2026/x.log.gz", "123456789012", "us-gov-west-1"},
		{"networkfirewall", "AWSLogs/123456789012/network-firewall/flow", "123456789012", ""},
		{"networkfirewall", "AWSLogs/me/network-firewall/flow/us-east-1/fw", "", ""},
		{"networkfirewall", "x", "", ""},
	}
	for _, tt := range tests {
		f, err := Open(t.Context(), tt.format, nil, Deps{Source: "feed", Types: NewTypes(0)})
		if err != nil {
			t.Fatal(err)
		}
		if account, region := f.Place(tt.key); account != tt.account || region != tt.region {
			t.Errorf("%s, %s: %q, %q, want %q, %q", tt.format, tt.key, account, region, tt.account, tt.region)
		}
	}
}
