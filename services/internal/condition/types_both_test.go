package condition

import "testing"

func TestBoth(t *testing.T) {
	for _, tt := range []struct{ a, b, want string }{
		{"a.b", "a.b", "a.b"},
		{"a.b", "a.c", ""},
		{"a.*", "*.b", "a.b"},
		{"a.>", "a.b.c", "a.b.c"},
		{"a.>", "*.b.>", "a.b.>"},
		{">", "a.*", "a.*"},
		{"a.>", "a", ""},
		{"a.*", "a.b.c", ""},
		{"*", "*", "*"},
	} {
		for _, pair := range [][2]string{{tt.a, tt.b}, {tt.b, tt.a}} {
			if got, ok := Both(pair[0], pair[1]); got != tt.want || ok != (tt.want != "") {
				t.Errorf("%v: got %q, %v, want %q", pair, got, ok, tt.want)
			}
		}
	}
}

func FuzzBoth(f *testing.F) {
	f.Add("a.*", "*.b", "a.b")
	f.Add("a.>", "a.b.c", "a.b.c")
	f.Fuzz(func(t *testing.T, a, b, eventType string) {
		one, errA := ParseTypes([]string{a})
		two, errB := ParseTypes([]string{b})
		if errA != nil || errB != nil || !IsType(eventType) {
			return
		}
		both, ok := Both(a, b)
		got := false
		if ok {
			types, err := ParseTypes([]string{both})
			if err != nil {
				t.Fatalf("Both(%q, %q) = %q: %v", a, b, both, err)
			}
			got = types.Has(eventType)
		}
		if want := one.Has(eventType) && two.Has(eventType); got != want {
			t.Fatalf("Both(%q, %q) = %q, %v: has %q: %v, want %v", a, b, both, ok, eventType, got, want)
		}
	})
}
