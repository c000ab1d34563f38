/* SPDX-License-Identifier: Apache-2.0 */
#ifndef NT_LINUX_KCONFIG_H
#define NT_LINUX_KCONFIG_H

/* bcc force-includes this file and refuses to go on without the option. */
#define CONFIG_BPF_SYSCALL 1
#define CONFIG_64BIT 1

#endif
