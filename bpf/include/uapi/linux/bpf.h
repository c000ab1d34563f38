/* SPDX-License-Identifier: Apache-2.0 */
#ifndef NT_UAPI_LINUX_BPF_H
#define NT_UAPI_LINUX_BPF_H

/* bcc brings its own copy of bpf.h; this one only has to exist. */

#endif
