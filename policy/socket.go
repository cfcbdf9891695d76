package policy

// SocketOf returns where the proxy of a policy file answers its admin, whatever
// mistakes the file has elsewhere: one that runs has the policy from before they were
// made, and is to be asked what has become of it. Without an answer the errors are
// those of Load.
func SocketOf(file string) (string, error) {
	if text, _, err := (realDisk{}).read(file, maxPolicyBytes); err == nil {
		d := newDecoder(file, realDisk{})
		d.decode(text)
		if d.pol.StateDir != "" && d.pol.Admin.Socket != "" {
			return d.pol.Admin.Socket, nil
		}
	}
	pol, err := Load(file)
	if err != nil {
		return "", err
	}
	return pol.Admin.Socket, nil
}
