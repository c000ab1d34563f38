/* SPDX-License-Identifier: Apache-2.0 */
#ifndef NT_LINUX_VERSION_H
#define NT_LINUX_VERSION_H

/* LINUX_VERSION_CODE is the running kernel's, given by the compiling child with -D. */
#define KERNEL_VERSION(a, b, c) \
	(((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))

#endif
