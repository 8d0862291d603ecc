package formats

import (
	"testing"

	"github.com/penstock/penstock/messages"
)

// The id of a data point has the account and region that were asked, and whatever
// tells series and times apart.
// covers: F-17 (id, revision), DEV-106
func TestMetricIDs(t *testing.T) {
	const point = `{"namespace":"AWS/EC2","metric":"m","dimensions":{"a":"1","b":"2"},"stat":"Sum","period":60,"value":1,"timestamp":"2026-01-05T14:48:00Z"}`
	decode := func(account, rec string) Doc {
		dec := open(t, "cwmetrics", nil, Deps{})
		if err := dec.(Starter).Start(Head{Origin: &messages.Origin{Account: account, Region: "eu-west-1"}}); err != nil {
			t.Fatal(err)
		}
		var d Doc
		if err := dec.Decode([]byte(rec), &d); err != nil || !d.HasID {
			t.Fatalf("%s: %s, %v", rec, d.render(), err)
		}
		return d
	}
	want := decode("1", point)
	if want.Account != "1" || want.Region != "eu-west-1" {
		t.Errorf("%s", want.render())
	}
	for _, rec := range []string{
		`{"namespace":"AWS/EC2","metric":"m","dimensions":{"b":"2","a":"1"},"stat":"Sum","period":60,"value":2,"timestamp":"2026-01-05T14:48:00.000Z"}`,
		`{"account":"1","region":"eu-west-1","namespace":"AWS/EC2","metric":"m","dimensions":{ "a" : "1" , "b" : "2" },"stat":"Sum","period":60,"timestamp":"2026-01-05T15:48:00+01:00"}`,
	} {
		if d := decode("1", rec); d.ID != want.ID {
			t.Errorf("%s is another point", rec)
		}
	}
	seen := map[messages.ID]string{want.ID: point, decode("2", point).ID: "of another account"}
	for _, rec := range []string{
		`{"namespace":"AWS/EC2","metric":"m","dimensions":{"a":"1","b":"2"},"stat":"Sum","period":60,"revision":1,"timestamp":"2026-01-05T14:48:00Z"}`,
		`{"namespace":"AWS/EC2","metric":"m","dimensions":{"a":"1","b":"2"},"stat":"Sum","period":300,"timestamp":"2026-01-05T14:48:00Z"}`,
		`{"namespace":"AWS/EC2","metric":"m","dimensions":{"a":"1","b":"2"},"stat":"Average","period":60,"timestamp":"2026-01-05T14:48:00Z"}`,
		`{"namespace":"AWS/EC2","metric":"m","dimensions":{"a":"1"},"stat":"Sum","period":60,"timestamp":"2026-01-05T14:48:00Z"}`,
		`{"namespace":"AWS/EC2","metric":"m","dimensions":{"a":"2","b":"1"},"stat":"Sum","period":60,"timestamp":"2026-01-05T14:48:00Z"}`,
		`{"namespace":"AWS/EC2","metric":"m","dimensions":[{"Name":"a","Value":"1"}],"stat":"Sum","period":60,"timestamp":"2026-01-05T14:48:00Z"}`,
		`{"namespace":"AWS/EC2","metric":"m","dimensions":[{"Name":"a","Value":"2"}],"stat":"Sum","period":60,"timestamp":"2026-01-05T14:48:00Z"}`,
		`{"namespace":"AWS/EC2","metric":"m","dimensions":"a=1","stat":"Sum","period":60,"timestamp":"2026-01-05T14:48:00Z"}`,
		`{"namespace":"AWS/EC2","metric":"m","stat":"Sum","period":60,"timestamp":"2026-01-05T14:48:00Z"}`,
		`{"namespace":"AWS/EC2","metric":"m","dimensions":{"a":"1","b":"2"},"stat":"Sum","period":60,"timestamp":"2026-01-05T14:49:00Z"}`,
		`{"namespace":"AWS/EC2","metric":"n","dimensions":{"a":"1","b":"2"},"stat":"Sum","period":60,"timestamp":"2026-01-05T14:48:00Z"}`,
		`{"namespace":"AWS/ECS","metric":"m","dimensions":{"a":"1","b":"2"},"stat":"Sum","period":60,"timestamp":"2026-01-05T14:48:00Z"}`,
	} {
		d := decode("1", rec)
		if other, ok := seen[d.ID]; ok {
			t.Errorf("%s has the id of %s", rec, other)
		}
		seen[d.ID] = rec
	}
}
