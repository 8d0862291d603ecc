package messages

import "testing"

// Only what is written the same way again is taken: event ids are made of the text.
func TestUUID(t *testing.T) {
	const text = "0f9c1a2b-3d4e-5f60-7182-93a4b5c6d7e8"
	u, ok := ParseUUID(text)
	if !ok || u.String() != text || u[0] != 0x0f || u[15] != 0xe8 {
		t.Errorf("%q is read as %s (%v)", text, u, ok)
	}
	for _, bad := range []string{
		"", "m-1", text[1:], text + "0", "0F9c1a2b-3d4e-5f60-7182-93a4b5c6d7e8", "0f9c1a2b03d4e-5f60-7182-93a4b5c6d7e8",
		"0f9c1a2b-3d4e-5f60-7182-93a4b5c6d7-8", "gf9c1a2b-3d4e-5f60-7182-93a4b5c6d7e8",
	} {
		if u, ok := ParseUUID(bad); ok {
			t.Errorf("%q is read as %s", bad, u)
		}
	}
}
