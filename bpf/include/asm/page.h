/* SPDX-License-Identifier: Apache-2.0 */
#ifndef NT_ASM_PAGE_H
#define NT_ASM_PAGE_H

/* bcc's helpers.h names PAGE_SIZE for its perf buffers, which we do not use. */
#define PAGE_SIZE 4096

#endif
