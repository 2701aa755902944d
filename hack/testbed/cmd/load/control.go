// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// control serves POST /apiserver/stop and /apiserver/start for one test bed until ctx is done. It answers
// when the API server has stopped or is ready again. KPR_TESTBED_SCRIPTS names the directory of the
// scripts that it runs.
func control(ctx context.Context, listen, testbed string) error {
	scripts := os.Getenv("KPR_TESTBED_SCRIPTS")
	if listen == "" || testbed == "" || scripts == "" {
		return errors.New("control needs --listen, --testbed and KPR_TESTBED_SCRIPTS")
	}
	// One at a time, so that a stop cannot overtake a start.
	var busy sync.Mutex
	handler := http.NewServeMux()
	for _, action := range []string{"stop", "start"} {
		handler.HandleFunc("POST /apiserver/"+action, func(w http.ResponseWriter, _ *http.Request) {
			busy.Lock()
			defer busy.Unlock()
			// Not the request's context: a client that disconnects must not interrupt the script.
			script := exec.CommandContext(ctx, filepath.Join(scripts, "apiserver-"+action), testbed)
			output, err := script.CombinedOutput()
			if err != nil {
				http.Error(w, fmt.Sprintf("%s%v", output, err), http.StatusInternalServerError)
				return
			}
			fmt.Fprintln(w, "done")
		})
	}
	server := &http.Server{Addr: listen, Handler: handler}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
